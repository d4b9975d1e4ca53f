//! The signal frame that the kernel writes to a handler's stack, as bytes.
//!
//! Pure: no memory of the target is touched here. Source: Linux, `arch/x86/kernel/signal_64.c`, `fpu/signal.c`,
//! `arch/x86/include/uapi/asm/sigcontext.h`; the test compares with frames that the running kernel makes.
//!
//! From high to low addresses: extended state (aligned to 64), then `struct rt_sigframe`, whose address is the
//! handler's stack pointer and is 8 below a multiple of 16, as after a call:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | return address: the restorer |
//! | 8 | 16 | `uc_flags`, `uc_link` |
//! | 24 | 24 | `uc_stack` |
//! | 48 | 256 | registers |
//! | 304 | 8 | `uc_sigmask` |
//! | 312 | 128 | siginfo |

use leakscope_translate::Guest;

use super::{INFO_BYTES, Info, Set};

/// Bytes of `struct rt_sigframe`.
pub const FRAME_BYTES: u64 = 440;

/// Where its siginfo is.
pub const INFO_AT: u64 = 312;

/// Where its ucontext is.
pub const CONTEXT_AT: u64 = 8;

const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
const MAGIC2_BYTES: usize = 4;
/// `struct _fpx_sw_bytes` in the part of the legacy area that the processor leaves alone.
const SOFTWARE: usize = 464;
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;

/// The red zone below the stack pointer.
const RED_ZONE: u64 = 128;

/// The order of the registers in `struct sigcontext_64`, as indices of [`Guest::gpr`].
const ORDER: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4];

/// `uc_flags`: there is extended state, and the stack segment is to be kept.
const CONTEXT_FLAGS: u64 = 1 | 2 | 4;

/// The flags that `sigreturn` lets a frame set (`FIX_EFLAGS` of the kernel).
const SETTABLE_FLAGS: u64 = 0x0005_0dd5;

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AltStack {
    /// Lowest address.
    pub start: u64,
    /// `SS_*`.
    pub flags: i32,
    /// Its length.
    pub bytes: u64,
}

/// `SS_AUTODISARM`.
pub const AUTODISARM: i32 = i32::MIN;

impl AltStack {
    /// None.
    pub const NONE: Self = Self { start: 0, flags: libc::SS_DISABLE, bytes: 0 };

    /// Whether a stack pointer is on it (`on_sig_stack`): one that disarms itself never counts.
    #[must_use]
    pub fn is_on(&self, rsp: u64) -> bool {
        self.flags & AUTODISARM == 0 && self.contains(rsp)
    }

    /// Whether it contains a stack pointer.
    #[must_use]
    pub fn contains(&self, rsp: u64) -> bool {
        rsp > self.start && rsp - self.start <= self.bytes
    }

    /// From the target's memory.
    #[must_use]
    pub fn decode(bytes: &[u8; 24]) -> Self {
        Self { start: word(bytes, 0), flags: word(bytes, 8) as i32, bytes: word(bytes, 16) }
    }

    /// To the target's memory.
    #[must_use]
    pub fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        put(&mut bytes, 0, self.start);
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        put(&mut bytes, 16, self.bytes);
        bytes
    }
}

/// The extended state of a frame: which components, and how many bytes without the closing magic word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    /// As XCR0.
    pub features: u64,
    /// Length in the standard format.
    pub bytes: usize,
}

impl Extended {
    /// What [`Guest`] keeps.
    #[must_use]
    pub fn of_guest() -> Self {
        let features = Guest::xsave_mask();
        // The standard format's offsets are fixed by the architecture for these components.
        let bytes = if features & 0xe0 != 0 {
            0xa80
        } else if features & 4 != 0 {
            0x340
        } else {
            LEGACY_BYTES + HEADER_BYTES
        };
        Self { features, bytes }
    }
}

/// Where the parts of a frame go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `struct rt_sigframe`; the handler's stack pointer.
    pub frame: u64,
    /// The extended state.
    pub extended: u64,
    /// End of all.
    pub end: u64,
}

impl Place {
    /// The frame's place for a handler that runs on `altstack` or below `rsp`. `None`: the alternate stack overflows.
    #[must_use]
    pub fn new(rsp: u64, altstack: Option<&AltStack>, extended: &Extended) -> Option<Self> {
        let mut top = rsp.wrapping_sub(RED_ZONE);
        let mut limit = None;
        if let Some(stack) = altstack {
            if !stack.is_on(top) {
                top = stack.start.wrapping_add(stack.bytes);
            }
            limit = Some(stack);
        }
        let area = (extended.bytes + MAGIC2_BYTES) as u64;
        let extended = top.wrapping_sub(area) & !63;
        let frame = (extended.wrapping_sub(FRAME_BYTES) & !15).wrapping_sub(8);
        if limit.is_some_and(|stack| !stack.contains(frame)) {
            return None;
        }
        Some(Self { frame, extended, end: extended.wrapping_add(area) })
    }
}

/// What a frame says besides the registers.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The signal.
    pub info: &'a Info,
    /// The mask to return to.
    pub mask: Set,
    /// The alternate stack as it was.
    pub altstack: AltStack,
    /// `SA_RESTORER`.
    pub restorer: u64,
    /// `REG_ERR`, `REG_TRAPNO` and `REG_CR2`.
    pub trap: [u64; 3],
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut part = [0; 8];
    part.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(part)
}

/// `struct rt_sigframe`.
#[must_use]
pub fn encode(guest: &Guest, place: &Place, content: &Content<'_>) -> [u8; FRAME_BYTES as usize] {
    let mut bytes = [0; FRAME_BYTES as usize];
    put(&mut bytes, 0, content.restorer);
    put(&mut bytes, 8, CONTEXT_FLAGS);
    bytes[24..48].copy_from_slice(&content.altstack.encode());
    for (at, register) in ORDER.into_iter().enumerate() {
        put(&mut bytes, 48 + 8 * at, guest.gpr[register]);
    }
    put(&mut bytes, 176, guest.rip);
    put(&mut bytes, 184, guest.rflags);
    // Code and stack segment of 64-bit user mode; gs and fs are 0.
    put(&mut bytes, 192, 0x002b_0000_0000_0033);
    put(&mut bytes, 200, content.trap[0]);
    put(&mut bytes, 208, content.trap[1]);
    put(&mut bytes, 216, content.mask);
    put(&mut bytes, 224, content.trap[2]);
    put(&mut bytes, 232, place.extended);
    put(&mut bytes, 304, content.mask);
    bytes[INFO_AT as usize..INFO_AT as usize + INFO_BYTES].copy_from_slice(&content.info.0);
    bytes
}

/// The extended state with the kernel's words in it.
#[must_use]
pub fn encode_extended(xsave: &[u8], extended: &Extended) -> Vec<u8> {
    let mut bytes = xsave[..extended.bytes].to_vec();
    bytes.resize(extended.bytes + MAGIC2_BYTES, 0);
    let software = &mut bytes[SOFTWARE..LEGACY_BYTES];
    software.fill(0);
    software[..4].copy_from_slice(&MAGIC1.to_ne_bytes());
    software[4..8].copy_from_slice(&((extended.bytes + MAGIC2_BYTES) as u32).to_ne_bytes());
    put(software, 8, extended.features);
    software[16..20].copy_from_slice(&(extended.bytes as u32).to_ne_bytes());
    // Programs that know x87 and SSE only may change those without looking at the header.
    let present = word(&bytes, LEGACY_BYTES) & extended.features | 3;
    put(&mut bytes, LEGACY_BYTES, present);
    bytes[extended.bytes..].copy_from_slice(&MAGIC2.to_ne_bytes());
    bytes
}

/// What `sigreturn` finds in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// Where the extended state is; 0 for none.
    pub extended: u64,
    /// The mask to set.
    pub mask: Set,
    /// The alternate stack to set.
    pub altstack: AltStack,
}

/// Sets the integer registers from the frame that `bytes` holds.
pub fn decode(bytes: &[u8; FRAME_BYTES as usize], guest: &mut Guest) -> Returned {
    for (at, register) in ORDER.into_iter().enumerate() {
        guest.gpr[register] = word(bytes, 48 + 8 * at);
    }
    guest.rip = word(bytes, 176);
    guest.rflags = guest.rflags & !SETTABLE_FLAGS | word(bytes, 184) & SETTABLE_FLAGS;
    let mut altstack = [0; 24];
    altstack.copy_from_slice(&bytes[24..48]);
    Returned { extended: word(bytes, 232), mask: word(bytes, 304), altstack: AltStack::decode(&altstack) }
}

/// How much of the extended state is to be read, from its first 512 bytes: all, or these only.
#[must_use]
pub fn extended_length(legacy: &[u8; LEGACY_BYTES], extended: &Extended) -> usize {
    let magic = word(legacy, SOFTWARE) as u32;
    let bytes = word(legacy, SOFTWARE + 16) as u32 as usize;
    if magic == MAGIC1 && bytes >= LEGACY_BYTES + HEADER_BYTES { bytes.min(extended.bytes) } else { LEGACY_BYTES }
}

/// Sets the vector registers from what a frame holds: 512 bytes, or more if there is a header.
pub fn decode_extended(bytes: &[u8], guest: &mut Guest, extended: &Extended) {
    guest.reset_vectors();
    let length = bytes.len().min(extended.bytes);
    guest.xsave[..length].copy_from_slice(&bytes[..length]);
    guest.xsave[SOFTWARE..LEGACY_BYTES].fill(0);
    // Bits of MXCSR that no processor has make `xrstor` fault, and so does anything in the header but its first word.
    guest.xsave[26..28].fill(0);
    let present = if length > LEGACY_BYTES { word(&guest.xsave, LEGACY_BYTES) & extended.features } else { 3 };
    put(&mut guest.xsave, LEGACY_BYTES, present);
    guest.xsave[LEGACY_BYTES + 8..LEGACY_BYTES + HEADER_BYTES].fill(0);
}

#[cfg(test)]
mod tests;
