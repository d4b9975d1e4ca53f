//! Mapping the segments of a program.

use std::ffi::{CStr, CString};

use super::LoadError;
use super::headers::{Headers, Segment};

const PAGE: u64 = 4096;
/// Headers, the interpreter's name and a `#!` line lie within so much of a file.
const HEAD_BYTES: usize = 1 << 16;

/// A program in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What its file says.
    pub headers: Headers,
    /// Run-time address less link-time address.
    pub bias: u64,
    /// Its first instruction.
    pub entry: u64,
    /// Where its program headers are; 0 when no segment holds them.
    pub header_address: u64,
    /// The interpreter that it asks for.
    pub interpreter: Option<CString>,
    /// Its lowest page and the end of its highest one.
    pub start: u64,
    /// See `start`.
    pub end: u64,
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// A descriptor that closes itself.
struct Descriptor(i32);

impl Descriptor {
    fn open(path: &CStr) -> Result<Self, LoadError> {
        // SAFETY: a plain call with a C string.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if fd < 0 { Err(LoadError::File { path: path.to_owned(), errno: errno() }) } else { Ok(Self(fd)) }
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, i32> {
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer is as long as said.
        let read = unsafe { libc::pread(self.0, buffer.as_mut_ptr().cast(), bytes, offset as i64) };
        if read < 0 {
            return Err(errno());
        }
        buffer.truncate(read as usize);
        Ok(buffer)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: ours alone.
        unsafe { libc::close(self.0) };
    }
}

/// The first bytes of a file.
///
/// # Errors
/// The kernel's error number.
pub(crate) fn head(path: &CStr) -> Result<Vec<u8>, i32> {
    Descriptor::open(path).map_err(|error| error.errno())?.read(0, HEAD_BYTES)
}

/// Maps a program. `place` is given lowest and highest address as linked, and answers with the bias to use; it is not
/// asked for a program that is linked for a fixed address. `mapped` is told of each mapping: address, bytes, protection,
/// and the offset in the file, `None` for memory without one.
///
/// # Errors
/// What is wrong with the file, or what the kernel did not do.
pub fn load(
    path: &CStr,
    place: impl FnOnce(u64, u64) -> u64,
    mut mapped: impl FnMut(u64, u64, i32, Option<u64>),
) -> Result<Loaded, LoadError> {
    let file = Descriptor::open(path)?;
    let failed = |errno| LoadError::File { path: path.to_owned(), errno };
    let bytes = file.read(0, HEAD_BYTES).map_err(failed)?;
    let headers = Headers::decode(&bytes).map_err(|why| LoadError::NotRunnable { path: path.to_owned(), why })?;
    let interpreter = match headers.interpreter {
        Some((offset, length)) => {
            let name = file.read(offset, length.min(4096) as usize).map_err(failed)?;
            CStr::from_bytes_until_nul(&name).ok().map(CStr::to_owned)
        }
        None => None,
    };
    let (low, high) = headers.extent();
    let bias = match headers.kind {
        super::Kind::Fixed => 0,
        super::Kind::Relocatable => place(low, high),
    };
    for segment in &headers.segments {
        map_segment(&file, segment, bias, &mut mapped).map_err(|errno| LoadError::Map {
            path: path.to_owned(),
            address: segment.address.wrapping_add(bias),
            errno,
        })?;
    }
    Ok(Loaded {
        bias,
        entry: headers.entry.wrapping_add(bias),
        header_address: headers.header_address.map_or(0, |address| address.wrapping_add(bias)),
        interpreter,
        start: low.wrapping_add(bias),
        end: high.wrapping_add(bias),
        headers,
    })
}

fn map(address: u64, bytes: u64, protection: i32, fd: i32, offset: u64) -> Result<(), i32> {
    let kind = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: at a place where nothing else is, or this function fails.
    let at = unsafe {
        libc::mmap(
            address as *mut _,
            bytes as usize,
            protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | kind,
            fd,
            offset as i64,
        )
    };
    if at as u64 == address { Ok(()) } else { Err(errno()) }
}

fn map_segment(
    file: &Descriptor,
    segment: &Segment,
    bias: u64,
    mapped: &mut impl FnMut(u64, u64, i32, Option<u64>),
) -> Result<(), i32> {
    let start = segment.address.wrapping_add(bias);
    let (page, skew) = (start / PAGE * PAGE, start % PAGE);
    let file_end = (start + segment.file_bytes).next_multiple_of(PAGE);
    let end = (start + segment.memory_bytes).next_multiple_of(PAGE);
    let mut from = page;
    if segment.file_bytes > 0 {
        map(page, segment.file_bytes + skew, segment.protection, file.0, segment.offset - skew)?;
        mapped(page, file_end - page, segment.protection, Some(segment.offset - skew));
        if segment.memory_bytes > segment.file_bytes && segment.protection & libc::PROT_WRITE != 0 {
            let zero = start + segment.file_bytes;
            // SAFETY: the rest of the segment's last page of file, just mapped and writable.
            unsafe { core::ptr::write_bytes(zero as *mut u8, 0, (file_end - zero) as usize) };
        }
        from = file_end;
    }
    if end > from {
        map(from, end - from, segment.protection, -1, 0)?;
        mapped(from, end - from, segment.protection, None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of this machine, mapped anywhere, has in memory what its file has.
    #[test]
    fn a_loaded_program_is_its_file() {
        let path = c"/bin/ls";
        let file = std::fs::read("/bin/ls").unwrap();
        let mut maps = Vec::new();
        let place = |low: u64, high: u64| {
            // SAFETY: a new map to find room, given back at once; tests that run meanwhile may only make this fail.
            unsafe {
                let room = libc::mmap(
                    std::ptr::null_mut(),
                    (high - low) as usize,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                libc::munmap(room, (high - low) as usize);
                room as u64 - low
            }
        };
        let loaded =
            load(path, place, |at, bytes, protection, offset| maps.push((at, bytes, protection, offset))).unwrap();
        assert!((loaded.start..loaded.end).contains(&loaded.entry));
        assert!(loaded.interpreter.unwrap().to_str().unwrap().contains("ld-linux"));
        for segment in &loaded.headers.segments {
            let at = segment.address + loaded.bias;
            // SAFETY: the segment is mapped; all segments of this program may be read.
            let memory = unsafe { std::slice::from_raw_parts(at as *const u8, segment.memory_bytes as usize) };
            let range = segment.offset as usize..(segment.offset + segment.file_bytes) as usize;
            assert_eq!(&memory[..segment.file_bytes as usize], &file[range]);
            assert!(memory[segment.file_bytes as usize..].iter().all(|&byte| byte == 0));
            assert!(maps.iter().any(|&(start, bytes, ..)| start <= at && at < start + bytes));
        }
        assert_eq!(maps.iter().map(|map| map.0).min(), Some(loaded.start));
        assert_eq!(maps.iter().map(|map| map.0 + map.1).max(), Some(loaded.end));
    }

    #[test]
    fn what_cannot_be_loaded_is_said() {
        let failed = |path: &CStr| load(path, |_, _| 0, |_, _, _, _| {}).unwrap_err();
        assert_eq!(failed(c"/nowhere/x").errno(), libc::ENOENT);
        assert_eq!(failed(c"/etc/passwd").errno(), libc::ENOEXEC);
        assert!(failed(c"/").to_string().contains("/: cannot read it"));
    }
}
