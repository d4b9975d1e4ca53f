//! Where the bytes of a ledger come from, and what can be wrong with them as a whole.

use core::fmt;

use crate::layout;

/// Something that can be read at any offset.
pub trait ReadAt {
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When not all of them are there.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// Bytes that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// Offset of the first byte that was asked for.
    pub offset: u64,
    /// Number of bytes that were asked for.
    pub bytes: u64,
    /// The system's error number, 0 when the file simply ended.
    pub errno: i32,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {} bytes at offset {}", self.bytes, self.offset)?;
        if self.errno != 0 {
            write!(f, " (error {})", self.errno)?;
        }
        Ok(())
    }
}

impl core::error::Error for ReadError {}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let short = ReadError { offset, bytes: buf.len() as u64, errno: 0 };
        let start = usize::try_from(offset).map_err(|_| short)?;
        let end = start.checked_add(buf.len()).ok_or(short)?;
        buf.copy_from_slice(self.get(start..end).ok_or(short)?);
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        (**self).read_at(offset, buf)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset).map_err(|error| ReadError {
            offset,
            bytes: buf.len() as u64,
            errno: error.raw_os_error().unwrap_or(0),
        })
    }
}

/// Why a file cannot be taken for a ledger at all. The words follow the name of the file and a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// It is shorter than a header.
    TooShort {
        /// Its real size.
        file_bytes: u64,
    },
    /// The first bytes are not [`layout::MAGIC`].
    NotALedger,
    /// A version that this build does not read.
    Version(u32),
    /// The header itself could not be read.
    Read(ReadError),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { file_bytes } => write!(
                f,
                "{file_bytes} bytes are too few for a ledger, whose header alone has {}. \
                 help: the recording was cut off before it began; record again",
                layout::HEADER_BYTES
            ),
            Self::NotALedger => {
                write!(f, "not a leakscope ledger. help: give a file that `leakscope run` wrote")
            }
            Self::Version(found) => write!(
                f,
                "format version {found}; this build reads {0}-{0}. help: upgrade leakscope, or record again",
                layout::VERSION
            ),
            Self::Read(error) => write!(f, "{error}. help: check that the file is readable"),
        }
    }
}

impl core::error::Error for LedgerError {}
