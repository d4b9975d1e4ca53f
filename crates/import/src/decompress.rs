//! Files that were compressed: gzip, zstd and xz, found by their first bytes, several parts one after the other.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const XZ: [u8; 6] = *b"\xfd7zXZ\0";
/// More memory than any file asks for: `xz -9` needs 64 MiB.
const XZ_MEMORY_KIB: u32 = 70 << 10;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// The contents of `input`, whether it is compressed or not.
///
/// # Errors
/// Those of `input`, and those of a header that makes no sense.
pub(crate) fn plain<'a>(mut input: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn BufRead + 'a>> {
    let first = input.fill_buf()?;
    if first.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::with_capacity(CHUNK, MultiGzDecoder::new(input))));
    }
    if first.starts_with(&ZSTD) {
        return Ok(Box::new(BufReader::with_capacity(CHUNK, Frames::Between(input))));
    }
    if first.starts_with(&XZ) {
        let reader = lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB);
        return Ok(Box::new(BufReader::with_capacity(CHUNK, reader)));
    }
    Ok(input)
}

/// zstd frames one after the other. The decoder refuses windows above 100 MiB, which bounds its memory.
enum Frames<'a> {
    Between(Box<dyn BufRead + 'a>),
    Within(Box<StreamingDecoder<Box<dyn BufRead + 'a>, ruzstd::decoding::FrameDecoder>>),
    Ended,
}

impl Read for Frames<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Frames::Ended) {
                Frames::Ended => return Ok(0),
                Frames::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(input).map_err(|error| damaged(&error))?;
                    *self = Frames::Within(Box::new(decoder));
                }
                Frames::Within(mut decoder) => {
                    let read = decoder.read(out).map_err(|error| damaged(&error))?;
                    if read > 0 {
                        *self = Frames::Within(decoder);
                        return Ok(read);
                    }
                    *self = Frames::Between(decoder.into_inner());
                }
            }
        }
    }
}

fn damaged(error: &dyn std::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the zstd data are damaged: {error}"))
}
