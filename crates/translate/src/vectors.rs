//! Reads vector and mask registers out of a saved state.
//!
//! Source: Intel SDM volume 1, chapter 13 (XSAVE areas); the offsets are the processor's own.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use crate::Guest;

const SSE: usize = 160;
const HEADER: usize = 512;
/// Components that are looked at: AVX, opmask, ZMM_Hi256, Hi16_ZMM.
const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HIGH: u32 = 6;
const ZMM_UPPER: u32 = 7;

/// A component of the area.
#[derive(Debug, Clone, Copy, Default)]
struct Component {
    offset: usize,
    bytes: usize,
    /// Whether the compact format puts it at a multiple of 64.
    is_aligned: bool,
}

/// The components in the standard format, asked of the processor once: in a virtual machine each `cpuid` takes tens of
/// microseconds.
fn layout() -> &'static [Component; 8] {
    static LAYOUT: OnceLock<[Component; 8]> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        std::array::from_fn(|component| {
            if component < 2 {
                return Component::default();
            }
            let answer = __cpuid_count(0xd, component as u32);
            Component { offset: answer.ebx as usize, bytes: answer.eax as usize, is_aligned: answer.ecx & 2 != 0 }
        })
    })
}

/// The vector registers of a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors<'a> {
    area: &'a [u8],
    in_use: u64,
}

impl<'a> Vectors<'a> {
    pub fn new(guest: &'a Guest) -> Self {
        let header = guest.xsave[HEADER..HEADER + 8].first_chunk().copied().unwrap_or_default();
        Self { area: &guest.xsave, in_use: u64::from_le_bytes(header) }
    }

    /// A part of a component; zero while the component is in its initial state.
    fn part(&self, component: u32, at: usize, into: &mut [u8]) {
        let Component { offset, bytes, .. } = layout()[component as usize];
        if self.in_use >> component & 1 == 0 || at + into.len() > bytes {
            return;
        }
        if let Some(from) = self.area.get(offset + at..offset + at + into.len()) {
            into.copy_from_slice(from);
        }
    }

    /// All 64 bytes of a vector register.
    pub fn register(&self, number: usize) -> [u8; 64] {
        let mut value = [0; 64];
        if number >= 16 {
            self.part(ZMM_UPPER, (number - 16) * 64, &mut value);
            return value;
        }
        if self.in_use & 2 != 0 {
            value[..16].copy_from_slice(&self.area[SSE + 16 * number..SSE + 16 * number + 16]);
        }
        self.part(AVX, number * 16, &mut value[16..32]);
        self.part(ZMM_HIGH, number * 32, &mut value[32..]);
        value
    }

    /// A mask register.
    pub fn opmask(&self, number: usize) -> u64 {
        let mut value = [0; 8];
        self.part(OPMASK, number * 8, &mut value);
        u64::from_le_bytes(value)
    }

    /// An MMX register: the low half of an x87 register; while MMX is in use the stack's top is 0.
    pub fn mmx(&self, number: usize) -> [u8; 8] {
        self.area[32 + 16 * number..40 + 16 * number].first_chunk().copied().unwrap_or_default()
    }

    /// Where `xsave` puts these components behind the header: offset and size.
    pub fn components(mask: u64, compact: bool) -> impl Iterator<Item = (u64, u64)> {
        let mut next = HEADER + 64;
        (2..8).filter(move |component| mask >> component & 1 != 0).filter_map(move |component| {
            let Component { offset, bytes, is_aligned } = layout()[component];
            if bytes == 0 {
                return None;
            }
            if !compact {
                return Some((offset as u64, bytes as u64));
            }
            let at = if is_aligned { next.next_multiple_of(64) } else { next };
            next = at + bytes;
            Some((at as u64, bytes as u64))
        })
    }
}

/// Sets a vector register below 16, all of its 64 bytes.
#[cfg(test)]
pub(crate) fn set_register(guest: &mut Guest, number: usize, value: &[u8; 64]) {
    let all = layout();
    let (avx, high) = (all[AVX as usize], all[ZMM_HIGH as usize]);
    guest.xsave[SSE + 16 * number..SSE + 16 * number + 16].copy_from_slice(&value[..16]);
    if avx.bytes != 0 {
        guest.xsave[avx.offset + 16 * number..avx.offset + 16 * number + 16].copy_from_slice(&value[16..32]);
    }
    if high.bytes != 0 {
        guest.xsave[high.offset + 32 * number..high.offset + 32 * number + 32].copy_from_slice(&value[32..]);
    }
}
