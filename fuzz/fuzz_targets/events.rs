//! The file between the simulated CPU and the process outside, which a program may scribble over: any payloads with
//! their tags. What can be read comes back as it went, and becomes a recording.
#![no_main]

use leakscope_findings::analysis::Options;
use leakscope_findings::recording::{BuildOptions, Collector};
use leakscope_findings::{Suppressions, analyse};
use leakscope_ledger::events::{FRAME_BYTES, decode, encode, frame_of};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut collector = Collector::default();
    let mut nameless = |_, _: &_, addresses: &[_]| addresses.iter().map(|_| Vec::new()).collect();
    let mut rest = input;
    // `tag (1 byte) | length (2) | payload`, again and again.
    while let [tag, low, high, after @ ..] = rest {
        let (payload, next) = after.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(after.len()));
        rest = next;
        let Some(event) = decode(u32::from(*tag), payload) else { continue };
        let mut bytes = Vec::new();
        encode(&event, &mut bytes);
        let (frame, own) = bytes.split_first_chunk::<{ FRAME_BYTES as usize }>().expect("a frame");
        let (length, again) = frame_of(*frame);
        assert_eq!(again, u32::from(*tag));
        assert_eq!(decode(again, &own[..length as usize]).as_ref(), Some(&event));
        collector.add(&event);
        if let Some(part) = collector.of_event(&event, &BuildOptions::default(), &mut nameless) {
            analyse("0", &part, &Options::default(), &Suppressions::new());
        }
    }
    let all = collector.all(&BuildOptions::default(), &mut nameless);
    analyse("0", &all, &Options::default(), &Suppressions::new());
});
