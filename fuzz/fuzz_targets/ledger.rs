//! A ledger that a target scribbled over: a header with small areas that is right, and any bytes in the areas, in the
//! numbers of used records and in the rest of the header. What comes out is analysed.
#![no_main]

use core::mem::offset_of;

use leakscope_findings::analysis::Options;
use leakscope_findings::recording::{BuildOptions, build};
use leakscope_findings::{Suppressions, analyse};
use leakscope_ledger::layout::{self, AREAS, Area, Capacity, HEADER_BYTES, Header, MAGIC, VERSION};
use leakscope_ledger::reader::Snapshot;

/// Records that each area has room for.
const ROOM: u32 = 64;
/// Bytes in front of a change: area or header, where in it, how many bytes.
const PATCH: usize = 4;

struct Ledger {
    bytes: Vec<u8>,
    areas: [Area; AREAS],
}

impl Ledger {
    fn new() -> Self {
        let (mut areas, _) = layout::areas(Capacity::SMALL);
        let mut offset = HEADER_BYTES as u64;
        for area in &mut areas {
            *area = Area { offset, capacity: area.capacity.min(ROOM * 8), ..*area };
            offset += (u64::from(area.stride) * u64::from(area.capacity)).next_multiple_of(4096);
        }
        let mut ledger = Self { bytes: vec![0; offset as usize], areas };
        ledger.put(0, &MAGIC);
        ledger.put(offset_of!(Header, version), &VERSION.to_ne_bytes());
        ledger.put(offset_of!(Header, header_bytes), &(HEADER_BYTES as u32).to_ne_bytes());
        ledger.put(offset_of!(Header, file_bytes), &offset.to_ne_bytes());
        for (number, area) in areas.iter().enumerate() {
            let at = offset_of!(Header, areas) + number * size_of::<Area>();
            ledger.put(at + offset_of!(Area, offset), &area.offset.to_ne_bytes());
            ledger.put(at + offset_of!(Area, stride), &area.stride.to_ne_bytes());
            ledger.put(at + offset_of!(Area, capacity), &area.capacity.to_ne_bytes());
        }
        ledger
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = (at + bytes.len()).min(self.bytes.len());
        if at < end {
            self.bytes[at..end].copy_from_slice(&bytes[..end - at]);
        }
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut ledger = Ledger::new();
    let (used, mut rest) = input.split_at(input.len().min(AREAS));
    for (number, &count) in used.iter().enumerate() {
        ledger.put(offset_of!(Header, used) + 4 * number, &u32::from(count).to_ne_bytes());
    }
    while rest.len() > PATCH {
        let (head, after) = rest.split_at(PATCH);
        let (data, next) = after.split_at(usize::from(head[3]).min(after.len()));
        let at = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let start = match ledger.areas.get(usize::from(head[0]) % (AREAS + 1)) {
            Some(area) => area.offset as usize,
            None => offset_of!(Header, config),
        };
        ledger.put(start + at, data);
        rest = next;
    }
    let Ok(snapshot) = Snapshot::read(&ledger.bytes[..], ledger.bytes.len() as u64) else { return };
    let mut nameless = |_, _: &_, addresses: &[_]| addresses.iter().map(|_| Vec::new()).collect();
    let recording = build(&snapshot, &BuildOptions::default(), &mut nameless);
    analyse("0", &recording, &Options::default(), &Suppressions::new());
});
