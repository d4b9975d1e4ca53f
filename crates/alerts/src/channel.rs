//! The ways out: mail, web, command. One file for each kind.

mod command;
mod mail;
mod web;

pub use command::Command;
pub use mail::{Mail, Security, Transport};
pub use web::{Address, Dialect, Web};

use crate::{AlertError, Notice};

/// A way out.
#[derive(Clone, Debug)]
pub enum Channel {
    /// E-mail.
    Mail(Mail),
    /// HTTP.
    Web(Web),
    /// A program that gets JSON on its standard input.
    Command(Command),
}

impl Channel {
    /// What it is called in the queue and in messages; never holds a secret.
    pub fn name(&self) -> String {
        match self {
            Self::Mail(mail) => format!("mail to {}", mail.to.join(", ")),
            Self::Web(web) => web.name(),
            Self::Command(command) => format!("command {}", command.words.first().map_or("", String::as_str)),
        }
    }

    /// Sends a notice now, within about 30 seconds.
    ///
    /// # Errors
    /// When it was not taken.
    pub fn send(&self, notice: &Notice) -> Result<(), AlertError> {
        match self {
            Self::Mail(mail) => mail.send(notice),
            Self::Web(web) => web.send(notice),
            Self::Command(command) => command.send(notice),
        }
        .map_err(|refusal| match refusal {
            Refusal::Other(error) => error,
            Refusal::Temporary(reason) => AlertError::Refused { channel: self.name(), reason, temporary: true },
            Refusal::Lasting(reason) => AlertError::Refused { channel: self.name(), reason, temporary: false },
        })
    }
}

/// Why a channel did not take a notice.
enum Refusal {
    /// Later it may.
    Temporary(String),
    /// It never will like this.
    Lasting(String),
    /// It was not asked.
    Other(AlertError),
}

impl From<AlertError> for Refusal {
    fn from(error: AlertError) -> Self {
        Self::Other(error)
    }
}
