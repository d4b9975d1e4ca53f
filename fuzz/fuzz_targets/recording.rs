//! A `.leak` file: any bytes, and any contents of sections with their lengths and checksums set right.
#![no_main]

use leakscope_findings::analysis::Options;
use leakscope_findings::container::{MAGIC, VERSION};
use leakscope_findings::{Suppressions, analyse, decode, encode};

const TAGS: [&[u8; 4]; 9] =
    [b"HEAD", b"PROC", b"SYMS", b"TREE", b"SITE", b"WITN", b"INTV", b"FUNC", b"DONE"];

/// Takes `number of the tag (1 byte) | raw bytes (2) | the bytes` one after the other.
fn container(mut bytes: &[u8]) -> Vec<u8> {
    let mut file = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat();
    while let [tag, low, high, rest @ ..] = bytes {
        let (raw, after) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut packed, raw).expect("memory");
        let packed = packed.finish().expect("memory");
        file.extend(TAGS[usize::from(*tag) % TAGS.len()]);
        file.extend(crc32fast::hash(&packed).to_le_bytes());
        file.extend((packed.len() as u64).to_le_bytes());
        file.extend((raw.len() as u64).to_le_bytes());
        file.extend(packed);
        bytes = after;
    }
    file
}

fn read(bytes: &[u8]) {
    let Ok((recording, _)) = decode(bytes) else { return };
    for process in &recording.processes {
        analyse("0", process, &Options::default(), &Suppressions::new());
    }
    let (again, problems) = decode(&encode(&recording)).expect("our own bytes");
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(again, recording);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    read(&container(bytes));
});
