//! E-mail: plain text, and HTML with the chart as a picture; over SMTP or through the local sendmail.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Message, SendmailTransport, SmtpTransport, Transport as _};

use super::Refusal;
use crate::{AlertError, Notice, Secret, chart, format};

const PATIENCE: Duration = Duration::from_secs(30);
/// Findings with a picture; a digest of a hundred has no hundred pictures.
const PICTURES: usize = 8;

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Begins in the clear and must change to TLS before anything else is said.
    StartTls,
    /// TLS from the first byte.
    Tls,
    /// In the clear: for a relay on this machine.
    None,
}

/// Who takes the mail.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A server.
    Smtp {
        /// Its name, which its certificate must have.
        host: String,
        /// Its port.
        port: u16,
        /// Protection.
        security: Security,
        /// Certificates to trust beside those of the system.
        ca_file: Option<PathBuf>,
        /// User and password.
        login: Option<(String, Secret)>,
    },
    /// The program `sendmail`.
    Sendmail(PathBuf),
}

/// E-mail to some people.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Sender.
    pub from: String,
    /// Recipients.
    pub to: Vec<String>,
    /// Who takes it.
    pub transport: Transport,
}

/// Whether a text is an address of mail, with or without a name before it.
pub fn is_address(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

impl Mail {
    /// Whether an address can stand in a mail.
    pub fn is_address(text: &str) -> bool {
        is_address(text)
    }

    pub(super) fn send(&self, notice: &Notice) -> Result<(), Refusal> {
        let message = self.message(notice)?;
        match &self.transport {
            Transport::Sendmail(program) => SendmailTransport::new_with_command(program)
                .send(&message)
                .map_err(|error| Refusal::Temporary(error.to_string())),
            Transport::Smtp { .. } => {
                let answer = self.smtp()?.send(&message);
                answer.map(|_| ()).map_err(|error| {
                    let reason = explain(&error);
                    if error.is_permanent() { Refusal::Lasting(reason) } else { Refusal::Temporary(reason) }
                })
            }
        }
    }

    fn smtp(&self) -> Result<SmtpTransport, Refusal> {
        let Transport::Smtp { host, port, security, ca_file, login } = &self.transport else {
            return Err(Refusal::Lasting("no server is named".to_owned()));
        };
        let mut builder = SmtpTransport::builder_dangerous(host).port(*port).timeout(Some(PATIENCE));
        if *security != Security::None {
            let mut parameters = TlsParameters::builder(host.clone());
            if let Some(path) = ca_file {
                let pem = std::fs::read(path)
                    .map_err(|error| Refusal::Lasting(format!("certificates {}: {error}", path.display())))?;
                let certificate = Certificate::from_pem(&pem)
                    .map_err(|error| Refusal::Lasting(format!("certificates {}: {error}", path.display())))?;
                parameters = parameters.add_root_certificate(certificate);
            }
            let parameters = parameters.build().map_err(|error| Refusal::Lasting(explain(&error)))?;
            builder = builder.tls(match security {
                Security::Tls => Tls::Wrapper(parameters),
                _ => Tls::Required(parameters),
            });
        }
        if let Some((user, password)) = login {
            builder = builder.credentials(Credentials::new(user.clone(), password.read()?));
        }
        Ok(builder.build())
    }

    fn message(&self, notice: &Notice) -> Result<Message, Refusal> {
        let address = |text: &String| {
            text.parse::<Mailbox>().map_err(|_| AlertError::Address {
                found: text.clone(),
                expected: "an address such as ops@example.org",
            })
        };
        let mut builder = Message::builder().from(address(&self.from)?).subject(format::subject(notice));
        for recipient in &self.to {
            builder = builder.to(address(recipient)?);
        }
        let mut pictures = Vec::new();
        for (index, (_, finding)) in notice.findings.iter().enumerate().take(PICTURES) {
            pictures.extend(chart::png(&finding.series).map(|png| (index, png)));
        }
        let has_picture = |index: usize| pictures.iter().any(|(number, _)| *number == index);
        let page = format::html(notice, |index| has_picture(index).then(|| format!("cid:chart{index}")));
        let mut related = MultiPart::related().singlepart(SinglePart::html(page));
        for (index, png) in pictures {
            let kind = ContentType::parse("image/png").map_err(|error| Refusal::Lasting(error.to_string()))?;
            related = related.singlepart(Attachment::new_inline(format!("chart{index}")).body(png, kind));
        }
        let body = MultiPart::alternative().singlepart(SinglePart::plain(format::text(notice))).multipart(related);
        builder.multipart(body).map_err(|error| Refusal::Lasting(error.to_string()))
    }
}

/// An error with its causes; lettre's own text is the outermost alone.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
