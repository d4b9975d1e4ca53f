//! The engine's end of the file of events: appends, publishes, and waits until what it said was taken.
//!
//! The process outside prints an error before the target goes on, so that the lines of both stand in their order, and
//! the engine knows whether a rule hid it. It waits on a futex in the shared header; when the outside is gone, it
//! stops waiting for good.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use leakscope_ledger::events::{self, Event, Field};

/// How long the outside may be silent, nanoseconds for each look at whether it still lives.
const PATIENCE_NS: i64 = 200_000_000;
/// How often it is looked.
const LOOKS: u32 = 300;

/// The mapped file.
pub struct Output {
    base: u64,
    bytes: u64,
    end: u64,
    /// Nobody reads any more.
    is_deaf: bool,
    /// The file is another process's: nothing is written.
    is_private: bool,
    /// The socket's name.
    bell: String,
    buffer: Vec<u8>,
}

impl Output {
    /// Maps the file; `None` when it is not one of this version.
    pub fn map(fd: i32, bell: &str) -> Option<Self> {
        // SAFETY: a new shared map at an address of the kernel's choice; the size is the file's.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) != 0 || (stat.st_size as u64) < events::EVENTS_OFFSET {
                return None;
            }
            let bytes = stat.st_size as u64;
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), bytes as usize, protection, flags, fd, 0);
            if at == libc::MAP_FAILED {
                return None;
            }
            let output = Self {
                base: at as u64,
                bytes,
                end: events::EVENTS_OFFSET,
                is_deaf: false,
                is_private: false,
                bell: bell.to_owned(),
                buffer: Vec::new(),
            };
            let is_ours = output.field(Field::Magic).load(Ordering::Acquire) == events::MAGIC
                && output.field(Field::Version).load(Ordering::Relaxed) == events::VERSION;
            is_ours.then_some(output)
        }
    }

    fn field(&self, field: Field) -> &AtomicU64 {
        // SAFETY: the header is mapped and aligned, and only accessed by atomics.
        unsafe { &*((self.base + 8 * field as u64) as *const AtomicU64) }
    }

    /// A number of the header.
    pub fn get(&self, field: Field) -> u64 {
        self.field(field).load(Ordering::Acquire)
    }

    /// Says how far the engine came.
    pub fn set_state(&self, state: u64) {
        self.field(Field::State).store(state, Ordering::Release);
    }

    /// A child is about to be made; the outside waits until it has connected, also when this process ends before.
    pub fn child_begins(&self) {
        self.field(Field::Forks).fetch_add(1, Ordering::AcqRel);
    }

    /// In a child, whose parent's file this still is: it has connected, or never will. Or in the parent: there is no child.
    pub fn child_arrived(&self) {
        self.field(Field::Arrived).fetch_add(1, Ordering::AcqRel);
    }

    /// The options.
    pub fn config(&self) -> String {
        // SAFETY: the header's page is mapped; the outside has written the options before it handed the file over.
        let bytes = unsafe {
            std::slice::from_raw_parts((self.base + events::CONFIG_OFFSET) as *const u8, events::CONFIG_BYTES as usize)
        };
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// The answer to the question that was told last, once it was taken; empty when nobody answers.
    pub fn answer(&self) -> Vec<(i64, i64)> {
        if self.is_deaf || self.is_private {
            return Vec::new();
        }
        // SAFETY: the header's page is mapped; the outside writes there before it says that the question was taken.
        let words = unsafe {
            let words = events::CONFIG_BYTES as usize / 8;
            std::slice::from_raw_parts((self.base + events::CONFIG_OFFSET) as *const i64, words)
        };
        let Some((&count, pairs)) = words.split_first() else { return Vec::new() };
        let count = usize::try_from(count).unwrap_or(0).min(events::MOST_ANSWERS);
        pairs.chunks_exact(2).take(count).map(|pair| (pair[0], pair[1])).collect()
    }

    /// Appends an event; it can be read at once, and perhaps is.
    pub fn tell(&mut self, event: &Event) {
        if self.is_private {
            return;
        }
        self.buffer.clear();
        events::encode(event, &mut self.buffer);
        let length = self.buffer.len() as u64;
        if length > self.bytes - self.end {
            self.field(Field::Lost).fetch_add(1, Ordering::Relaxed);
            return;
        }
        // SAFETY: within the map; the outside reads only what is published.
        unsafe {
            let at = (self.base + self.end) as *mut u8;
            std::ptr::copy_nonoverlapping(self.buffer.as_ptr(), at, self.buffer.len());
        }
        self.end += length;
        self.field(Field::Published).store(self.end, Ordering::Release);
    }

    /// Connects without a word: the outside sleeps in `poll`, and this wakes it. Descriptors of the target are not
    /// counted on, as programs close those that they do not know.
    fn ring(&self) {
        if let Some(socket) = crate::start::open_socket(&self.bell) {
            // SAFETY: ours alone.
            unsafe { libc::close(socket) };
        }
    }

    /// The low half of a number: what futexes work on. Events are multiples of 8 bytes, and the file is no longer than
    /// 2^32, so it changes whenever the number does.
    fn word(&self, field: Field) -> &AtomicU32 {
        // SAFETY: as in `field`.
        unsafe { &*((self.base + 8 * field as u64) as *const AtomicU32) }
    }

    /// Nothing is told any more: the file belongs to the parent, and this process is to be silent.
    pub fn be_private(&mut self) {
        self.is_private = true;
        self.is_deaf = true;
    }

    /// Waits until everything that was told has been taken.
    pub fn wait(&mut self) {
        let mut looks = 0;
        if !self.is_deaf && self.get(Field::Taken) < self.end {
            self.ring();
        }
        while !self.is_deaf {
            let taken = self.get(Field::Taken);
            if taken >= self.end {
                return;
            }
            let time = libc::timespec { tv_sec: 0, tv_nsec: PATIENCE_NS };
            futex(self.word(Field::Taken), libc::FUTEX_WAIT, taken as u32, &time);
            if self.get(Field::Taken) == taken {
                looks += 1;
                self.is_deaf = looks > LOOKS;
            } else {
                looks = 0;
            }
        }
    }

    /// Takes over what the parent had told, after fork, into a file of our own.
    pub fn inherit(&mut self, parent: &Self) {
        let length = parent.end - events::EVENTS_OFFSET;
        if length > self.bytes - self.end {
            return;
        }
        // SAFETY: both maps are at least as long as their ends say.
        unsafe {
            let from = (parent.base + events::EVENTS_OFFSET) as *const u8;
            std::ptr::copy_nonoverlapping(from, (self.base + self.end) as *mut u8, length as usize);
        }
        self.end += length;
        self.tell(&Event::Forked);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: the map is this object's alone.
        unsafe { libc::munmap(self.base as *mut _, self.bytes as usize) };
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32, time: *const libc::timespec) {
    // SAFETY: a live word of a shared map, and a time or none.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, time) };
}
