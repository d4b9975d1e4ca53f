//! Events as they are printed: `--print-events`.

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};

use crate::layout::{RawEvent, text};
use crate::{Error, Kind};

/// An allocation or a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub ns: u64,
    /// Of which memory. A release by `kfree` is of `Kmalloc`, whatever it releases.
    pub kind: Kind,
    /// Whether it is a release.
    pub is_release: bool,
    /// Address of the block; of pages that of their `struct page`.
    pub address: u64,
    /// Bytes as requested, 0 for releases.
    pub requested: u64,
    /// Bytes as the allocator rounds them, 0 for releases.
    pub usable: u64,
    /// Return address in the caller, 0 when the tracepoint does not tell.
    pub call_site: u64,
    /// Log2 of the number of pages.
    pub order: u16,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Name of the thread.
    pub comm: String,
}

/// The ring of events.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let taken = || Error::Load { what: "the ring of events".to_owned(), reason: "it was taken already".to_owned() };
        let ring = RingBuf::try_from(ebpf.take_map("events").ok_or_else(taken)?)
            .map_err(|error| Error::Load { what: "the ring of events".to_owned(), reason: error.to_string() })?;
        Ok(Self { ring })
    }

    /// The next event, if there is one now.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let record = self.ring.next()?;
            if let Some(event) = decode_event(&record) {
                return Some(event);
            }
        }
    }
}

/// An event from the bytes of `struct event`.
fn decode_event(bytes: &[u8]) -> Option<Event> {
    let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    const { assert!(size_of::<RawEvent>() == 72) };
    Some(Event {
        ns: word(0)?,
        address: word(8)?,
        requested: word(16)?,
        usable: word(24)?,
        call_site: word(32)?,
        tgid: half(40)?,
        tid: half(44)?,
        kind: Kind::from_number(u32::from(*bytes.get(48)?))?,
        is_release: *bytes.get(49)? != 0,
        order: u16::from_ne_bytes(bytes.get(50..52)?.try_into().ok()?),
        comm: text(bytes.get(56..72)?),
    })
}
