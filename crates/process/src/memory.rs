//! The memory of another process, by `/proc/PID/mem`.
//!
//! It needs what ptrace needs to look (same user and dumpable, or CAP_SYS_PTRACE), and does not stop the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The open memory of a process.
#[derive(Debug)]
pub struct RemoteMemory {
    file: File,
}

impl RemoteMemory {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    /// When the process is gone, or not ours to look at.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/mem")).map(|file| Self { file })
    }

    /// Reads at `address`, up to the first byte that is not mapped; gives the number of bytes read.
    ///
    /// # Errors
    /// When the first byte already cannot be read.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            match self.file.read_at(&mut buffer[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_what_it_is() {
        let secret: Vec<u8> = (0..10_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let memory = RemoteMemory::open(std::process::id()).unwrap();
        let mut copy = vec![0; secret.len()];
        assert_eq!(memory.read(secret.as_ptr() as u64, &mut copy).unwrap(), secret.len());
        assert_eq!(copy, secret);
        assert!(memory.read(16, &mut copy).is_err());
    }
}
