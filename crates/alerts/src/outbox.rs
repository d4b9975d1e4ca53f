//! The queue: a file for each notice and channel, until the channel has taken it.
//!
//! Files are written beside their name, synced and renamed: one that is there is whole. A file's name begins with its
//! time, so that order is that of the names. At most [`MOST`] wait; the oldest give way, counted.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{AlertError, Channel, Notice};

/// Most files that wait.
const MOST: usize = 1000;
/// Seconds to the second attempt; each later one waits twice as long.
const FIRST_RETRY: u64 = 30;
/// Longest wait between two attempts, seconds.
const LONGEST_RETRY: u64 = 3600;
/// What could not be sent for so long is given up, seconds.
const GIVE_UP: u64 = 7 * 86_400;

/// A notice on its way through one channel.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    channel: String,
    notice: Notice,
    attempts: u32,
    next_at: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
    counter: u32,
}

/// What became of the letters that were due.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Sent.
    pub sent: u32,
    /// To be tried again, or given up: the reasons.
    pub failures: Vec<AlertError>,
    /// Given up.
    pub lost: u32,
}

impl Outbox {
    /// A queue in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, AlertError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|source| AlertError::Queue { path: folder.clone(), source })?;
        Ok(Self { folder, counter: 0 })
    }

    /// Puts a notice in the queue, once for each channel; gives how many older ones had to give way.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&mut self, notice: &Notice, channels: &[Channel]) -> Result<usize, AlertError> {
        for channel in channels {
            self.counter += 1;
            let letter = Letter { channel: channel.name(), notice: notice.clone(), attempts: 0, next_at: 0 };
            let name = format!("{:012}-{:08}-{:06}.json", notice.at, std::process::id(), self.counter);
            self.write(&self.folder.join(name), &letter)?;
        }
        let waiting = self.waiting();
        let excess = waiting.len().saturating_sub(MOST);
        waiting.iter().take(excess).for_each(|path| _ = fs::remove_file(path));
        Ok(excess)
    }

    /// Tries what is due at `now`; a channel that refuses is not tried again in this call.
    pub fn deliver(&self, channels: &[Channel], now: u64) -> Delivery {
        let mut delivery = Delivery::default();
        let mut refusing: Vec<String> = Vec::new();
        for path in self.waiting() {
            let Some(mut letter) = self.read(&path) else {
                let _ = fs::remove_file(&path);
                delivery.lost += 1;
                continue;
            };
            if letter.next_at > now.saturating_add(LONGEST_RETRY) {
                // The clock was set back.
                letter.next_at = now;
            }
            if letter.next_at > now || refusing.contains(&letter.channel) {
                continue;
            }
            let Some(channel) = channels.iter().find(|channel| channel.name() == letter.channel) else {
                // No longer configured.
                let _ = fs::remove_file(&path);
                delivery.lost += 1;
                continue;
            };
            match channel.send(&letter.notice) {
                Ok(()) => {
                    delivery.sent += 1;
                    if let Err(source) = fs::remove_file(&path) {
                        delivery.failures.push(AlertError::Queue { path, source });
                    }
                }
                Err(error) => {
                    refusing.push(letter.channel.clone());
                    letter.attempts += 1;
                    letter.next_at =
                        now + (FIRST_RETRY << letter.attempts.min(10).saturating_sub(1)).min(LONGEST_RETRY);
                    delivery.failures.push(error);
                    if letter.notice.at + GIVE_UP < now {
                        let _ = fs::remove_file(&path);
                        delivery.lost += 1;
                    } else if let Err(error) = self.write(&path, &letter) {
                        delivery.failures.push(error);
                    }
                }
            }
        }
        delivery
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiting(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
        paths.sort();
        paths
    }

    fn read(&self, path: &Path) -> Option<Letter> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path, letter: &Letter) -> Result<(), AlertError> {
        let failed = |source| AlertError::Queue { path: path.to_owned(), source };
        let text = serde_json::to_vec(letter).map_err(|error| failed(io::Error::other(error)))?;
        write_whole(path, &text).map_err(failed)
    }
}

/// Writes a file so that it is there whole or not at all.
///
/// # Errors
/// When it cannot be written or renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The name is on the disk when the folder is.
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::sample_finding;
    use crate::{Kind, channel::Command};

    fn notice(at: u64) -> Notice {
        let findings = vec![(Kind::Test, sample_finding(at))];
        Notice { kind: Kind::Test, machine: "m".into(), at, findings, withheld: 0 }
    }

    #[test]
    fn what_is_refused_is_kept_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("arrived");
        let script = format!("test -e {0}.open && cat >> {0}", target.display());
        let channels = [Channel::Command(Command { words: vec!["sh".into(), "-c".into(), script] })];
        let mut outbox = Outbox::open(folder.path().join("queue")).unwrap();
        outbox.put(&notice(1000), &channels).unwrap();
        let refused = outbox.deliver(&channels, 1000);
        assert_eq!((refused.sent, refused.failures.len(), refused.lost), (0, 1, 0));
        // As after a restart.
        let outbox = Outbox::open(folder.path().join("queue")).unwrap();
        std::fs::write(format!("{}.open", target.display()), "").unwrap();
        assert_eq!(outbox.deliver(&channels, 1010).sent, 0, "not due");
        assert_eq!(outbox.deliver(&channels, 1030).sent, 1);
        assert!(outbox.is_empty());
        assert!(std::fs::read_to_string(&target).unwrap().contains("\"kind\":\"test\""));
        assert_eq!(outbox.deliver(&channels, 9000).sent, 0, "once");
    }

    #[test]
    fn after_a_week_it_is_given_up_and_the_oldest_give_way() {
        let folder = tempfile::tempdir().unwrap();
        let channels = [Channel::Command(Command { words: vec!["false".into()] })];
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.put(&notice(1000), &channels).unwrap();
        assert_eq!(outbox.deliver(&channels, 1000 + GIVE_UP + 1).lost, 1);
        assert!(outbox.is_empty());
        std::fs::write(folder.path().join("000-torn.json"), "{\"chan").unwrap();
        assert_eq!(outbox.deliver(&channels, 5).lost, 1);
    }
}
