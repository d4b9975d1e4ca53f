//! The bytes of a `.leak` file.
//!
//! ```text
//! 0        8         12        16
//! +--------+---------+---------+---------+---------+ ...
//! | magic  | version | zero    | section | section |     all numbers little-endian
//! +--------+---------+---------+---------+---------+ ...
//!
//! section: tag (4 bytes) | CRC-32 of the stored bytes (4) | stored bytes (8) | raw bytes (8) | stored bytes
//! ```
//!
//! The stored bytes are the raw ones deflated (zlib); the raw ones are postcard. Sections: `HEAD` (tool version,
//! host, number of processes), then for each process `PROC` (facts, modules, misuses, checks), `SYMS` (names,
//! frames, locations), `TREE` (the stack tree), `SITE` (sites); of processes that another tool recorded, `WITN`
//! (which tool, and memory errors); of those that called `mtrace()` or whose events were logged, `INTV` (intervals, the
//! log); of those that the simulated CPU ran, `FUNC` (where their allocation functions are, and addresses of wrong calls). `DONE` ends the file. An unknown tag is skipped, so that an older build reads a newer file of the same version.
//!
//! Decoding is total. A claimed length is believed only as far as there are bytes, and a section grows to its
//! claimed raw length only as data arrives, up to [`MOST_RAW_BYTES`] in all.

mod sections;

use std::fmt;

use crate::recording::Recording;

/// First bytes of every recording.
pub const MAGIC: [u8; 8] = *b"LEAKSCOP";
/// The version that this build writes and reads.
pub const VERSION: u32 = 1;
/// Raw bytes that one file may unpack to.
pub const MOST_RAW_BYTES: u64 = 4 << 30;

/// Why bytes cannot be taken for a recording at all. The words follow the name of the file and a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The first bytes are not [`MAGIC`].
    NotARecording,
    /// A version that this build does not read.
    Version(u32),
    /// Nothing of use is left.
    Empty,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotARecording => {
                write!(f, "not a leakscope recording. help: give a file that `leakscope run` wrote")
            }
            Self::Version(found) => write!(
                f,
                "format version {found}; this build reads 1-{VERSION}. help: upgrade leakscope, or record again"
            ),
            Self::Empty => {
                write!(f, "the recording is cut off before its first process. help: record again")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// Something that is missing from a recording; one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bytes of a `.leak` file.
pub fn encode(recording: &Recording) -> Vec<u8> {
    sections::encode(recording)
}

/// The recording in `bytes`, and what of it is missing.
///
/// # Errors
/// When it is no recording, one of another version, or nothing of a process is left.
pub fn decode(bytes: &[u8]) -> Result<(Recording, Vec<Problem>), DecodeError> {
    sections::decode(bytes)
}
