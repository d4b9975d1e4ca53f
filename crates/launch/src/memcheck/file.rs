//! A file of events from the outside: makes the memfd, reads what is published, says what was taken.
//!
//! Source of the bytes: `leakscope_ledger::events`. The map is the header's page only; events are read by `pread`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use leakscope_ledger::events::{self, Event, Field};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Resource;

use crate::Error;

const HEADER_BYTES: usize = events::EVENTS_OFFSET as usize;
/// An event longer than this is not one of ours.
const MOST_BYTES: u32 = 1 << 30;

/// A file that we made for one process.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
    map: NonNull<u8>,
    bytes: u64,
    /// End of the last event that was read.
    at: u64,
}

impl EventFile {
    /// Makes an empty one with these options.
    pub(super) fn create(options: &str, origin: u32) -> Result<Self, Error> {
        let limit = rustix::process::getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        let bytes = if limit >= events::FILE_BYTES { events::FILE_BYTES } else { events::SMALL_FILE_BYTES };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("leakscope-events", flags).map_err(Error::system("create a memfd"))?;
        let file = File::from(fd);
        file.set_len(bytes).map_err(Error::system("give the file of events its size"))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(Error::system("seal the size of the file of events"))?;
        // SAFETY: a new shared map at an address of the kernel's choice overlaps no Rust object.
        let map = unsafe {
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), HEADER_BYTES, rights, MapFlags::SHARED, &file, 0)
        }
        .map_err(Error::system("map the header of the file of events"))?;
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(|| Error::System {
            what: "map the header of the file of events",
            source: io::Error::other("the kernel gave address zero"),
        })?;
        let made = Self { file, map, bytes, at: events::EVENTS_OFFSET };
        let config = options.as_bytes();
        let room = events::CONFIG_BYTES as usize - 1;
        made.file
            .write_all_at(&config[..config.len().min(room)], events::CONFIG_OFFSET)
            .map_err(Error::system("write the options"))?;
        for (field, value) in [
            (Field::Version, events::VERSION),
            (Field::FileBytes, bytes),
            (Field::Origin, origin.into()),
            (Field::Published, events::EVENTS_OFFSET),
            (Field::Taken, events::EVENTS_OFFSET),
            (Field::Magic, events::MAGIC),
        ] {
            made.field(field).store(value, Release);
        }
        Ok(made)
    }

    fn field(&self, field: Field) -> &AtomicU64 {
        // SAFETY: the page is mapped as long as `self` lives and aligned; the file's size is sealed; both sides use atomics.
        unsafe { self.map.add(8 * field as usize).cast::<AtomicU64>().as_ref() }
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Events that did not fit.
    pub(super) fn lost(&self) -> u64 {
        self.field(Field::Lost).load(Relaxed)
    }

    /// Whether the process has made another one that has not connected yet.
    pub(super) fn awaits_child(&self) -> bool {
        // Read in this order: a child arrives after it was made.
        let arrived = self.field(Field::Arrived).load(Acquire);
        self.field(Field::Forks).load(Acquire) > arrived
    }

    /// The next event that is published and readable; those that are not events are passed over.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        loop {
            let end = self.field(Field::Published).load(Acquire).min(self.bytes);
            if end < self.at + events::FRAME_BYTES {
                return None;
            }
            let mut frame = [0; events::FRAME_BYTES as usize];
            self.file.read_exact_at(&mut frame, self.at).ok()?;
            let (length, tag) = events::frame_of(frame);
            let payload_at = self.at + events::FRAME_BYTES;
            if length > MOST_BYTES || payload_at + u64::from(length) > end {
                // Scribbled over: nothing behind it can be found.
                self.at = end;
                continue;
            }
            let mut payload = vec![0; length as usize];
            self.file.read_exact_at(&mut payload, payload_at).ok()?;
            self.at = payload_at + u64::from(length);
            if let Some(event) = events::decode(tag, &payload) {
                return Some(event);
            }
        }
    }

    /// Puts an answer where the engine looks for it.
    pub(super) fn answer(&self, answer: &[(i64, i64)]) {
        let answer = &answer[..answer.len().min(events::MOST_ANSWERS)];
        let mut bytes = (answer.len() as u64).to_le_bytes().to_vec();
        for (start, end) in answer {
            bytes.extend(start.to_le_bytes());
            bytes.extend(end.to_le_bytes());
        }
        // The file is ours and sealed; what could not be written would be an answer of nothing to a process that ends.
        let _ = self.file.write_all_at(&bytes, events::CONFIG_OFFSET);
    }

    /// Tells the engine that everything up to the last event was taken.
    pub(super) fn set_taken(&self, shown: u64, hidden: u64) {
        self.field(Field::Shown).store(shown, Relaxed);
        self.field(Field::Hidden).store(hidden, Relaxed);
        let taken = self.field(Field::Taken);
        taken.store(self.at, Release);
        // SAFETY: a live word of the shared map, its low half; little-endian.
        let word = unsafe { &*std::ptr::from_ref(taken).cast::<AtomicU32>() };
        let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), i32::MAX as u32);
    }
}

impl AsFd for EventFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        // SAFETY: the map was made by `create` with this length, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), HEADER_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an engine writes arrives, and what it scribbles does not stop the reader.
    #[test]
    fn published_events_arrive() {
        let mut file = EventFile::create("a=1", 0).unwrap();
        assert_eq!(file.next_event(), None);
        let mut bytes = Vec::new();
        events::encode(&Event::Failed("x".into()), &mut bytes);
        bytes.extend([8, 0, 0, 0, 99, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        events::encode(&Event::Forked, &mut bytes);
        file.file.write_all_at(&bytes, events::EVENTS_OFFSET).unwrap();
        file.field(Field::Published).store(events::EVENTS_OFFSET + bytes.len() as u64, Release);
        assert_eq!(file.next_event(), Some(Event::Failed("x".into())));
        assert_eq!(file.next_event(), Some(Event::Forked));
        assert_eq!(file.next_event(), None);
        file.set_taken(3, 1);
        assert_eq!(file.field(Field::Taken).load(Acquire), events::EVENTS_OFFSET + bytes.len() as u64);
        file.file.write_all_at(&[0xff; 16], file.at).unwrap();
        file.field(Field::Published).store(u64::MAX, Release);
        assert_eq!(file.next_event(), None);
        let mut config = [0; 4];
        file.file.read_exact_at(&mut config, events::CONFIG_OFFSET).unwrap();
        assert_eq!(&config, b"a=1\0");
    }
}
