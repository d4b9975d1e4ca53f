//! The kernel's log, as `/dev/kmsg` gives it: `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`, one record a read.
//!
//! Source: Linux `Documentation/ABI/testing/dev-kmsg`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use crate::Places;

/// A record is never longer.
const RECORD_BYTES: usize = 8192;
/// Records that are read at most: a log that grows while it is read has no end.
const MOST_RECORDS: usize = 1 << 20;

/// The log, read up to now.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
}

impl KernelLog {
    /// The log from its first record that is still there; `None` when it may not be read.
    pub fn open(places: &Places) -> Option<Self> {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(nonblock).open(places.path("/dev/kmsg")).ok()?;
        Some(Self { file })
    }

    /// The log from here on.
    pub fn open_at_end(places: &Places) -> Option<Self> {
        let mut log = Self::open(places)?;
        log.file.seek(SeekFrom::End(0)).ok()?;
        Some(log)
    }

    /// The texts of the records that came since the last call.
    pub fn read_new(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut record = [0; RECORD_BYTES];
        while texts.len() < MOST_RECORDS {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(bytes) => texts.extend(decode_record(&String::from_utf8_lossy(&record[..bytes])).map(str::to_owned)),
                // What was overwritten meanwhile is gone; the next read goes on behind it.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(_) => break,
            }
        }
        texts
    }
}

/// The text of a record, without what the kernel adds of devices in further lines.
fn decode_record(record: &str) -> Option<&str> {
    Some(record.split_once(';')?.1.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        assert_eq!(decode_record("6,1,2,-;kmemleak: x; y\n SUBSYSTEM=z\n"), Some("kmemleak: x; y"));
        assert_eq!(decode_record("noise"), None);
    }
}
