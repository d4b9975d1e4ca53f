//! The address of the last x87 instruction, which the processor keeps and `fnstenv`, `fnsave`, `fxsave` and `xsave` store: the
//! processor's is one of the cache, the target's is that of its own instruction. Processors that keep it for exceptions only
//! (AMD's, `FDP_EXCPTN_ONLY`) store zero, which is left alone.
//!
//! The guest's state is corrected whenever the cache is left, so that signal frames show the right address, and memory
//! behind each of these instructions. Code that was thrown away meanwhile has no address any more: then it is zero.
//!
//! Source: Intel SDM volume 1, 8.1.8 and figures 8-9 to 8-12 (images of the environment), 10.5.1 (the legacy area of `xsave`).

use iced_x86::{Instruction, Mnemonic};

use crate::recovery::Recovery;
use crate::{Gpr, Guest, layout};

/// Where the address lies in the legacy area.
const LEGACY_OFFSET: usize = 8;
/// `XSTATE_BV` in an area of `xsave`.
const HEADER_OFFSET: u64 = 512;
/// The bit of the x87 unit there.
const X87: u64 = 1;

/// Whether the instruction stores the address.
pub(crate) fn is_store(instruction: &Instruction) -> bool {
    place(instruction).is_some()
}

/// Where in the operand the address lies, and how many bytes it has.
fn place(instruction: &Instruction) -> Option<(u64, usize)> {
    match instruction.mnemonic() {
        Mnemonic::Fnstenv | Mnemonic::Fstenv | Mnemonic::Fnsave | Mnemonic::Fsave => {
            // 14 and 94 bytes in the 16-bit format, 28 and 108 in the other.
            let is_short = matches!(instruction.memory_size().size(), 14 | 94);
            Some(if is_short { (6, 2) } else { (12, 4) })
        }
        Mnemonic::Fxsave | Mnemonic::Xsave | Mnemonic::Xsavec | Mnemonic::Xsaveopt => Some((LEGACY_OFFSET as u64, 4)),
        Mnemonic::Fxsave64 | Mnemonic::Xsave64 | Mnemonic::Xsavec64 | Mnemonic::Xsaveopt64 => {
            Some((LEGACY_OFFSET as u64, 8))
        }
        _ => None,
    }
}

/// The target's address for one of the cache; `None` if it is none.
fn translated(address: u64, recovery: &Recovery) -> Option<u64> {
    (layout::HOT..layout::COLD_END).contains(&address).then(|| recovery.find(address).map_or(0, |mark| mark.pc))
}

/// Corrects the state that was saved when the cache was left.
pub(crate) fn correct_state(guest: &mut Guest, recovery: &Recovery) {
    let Some(field) = guest.xsave[LEGACY_OFFSET..].first_chunk_mut::<8>() else { return };
    if let Some(pc) = translated(u64::from_le_bytes(*field), recovery) {
        *field = pc.to_le_bytes();
    }
}

/// Corrects what the instruction has just stored at its operand's address.
///
/// # Safety
/// The operand can be written.
pub(crate) unsafe fn correct_memory(instruction: &Instruction, guest: &Guest, operand: u64, recovery: &Recovery) {
    let Some((offset, bytes)) = place(instruction) else { return };
    let is_extended = !matches!(
        instruction.mnemonic(),
        Mnemonic::Fnstenv
            | Mnemonic::Fstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fsave
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
    );
    // SAFETY: the caller's promise; `xsave` writes its header, whatever it was asked for.
    unsafe {
        let header = std::ptr::with_exposed_provenance::<u64>((operand + HEADER_OFFSET) as usize);
        if is_extended && (guest.gpr(Gpr::Rax) & X87 == 0 || header.read_unaligned() & X87 == 0) {
            return;
        }
        let field = std::ptr::with_exposed_provenance_mut::<u8>((operand + offset) as usize);
        let mut stored = [0; 8];
        std::ptr::copy_nonoverlapping(field, stored.as_mut_ptr(), bytes);
        let value = u64::from_le_bytes(stored);
        // Half an address cannot be found.
        let pc = if bytes == 2 && value != 0 { Some(0) } else { translated(value, recovery) };
        if let Some(pc) = pc {
            std::ptr::copy_nonoverlapping(pc.to_le_bytes().as_ptr(), field, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::{Mark, Rule};
    use iced_x86::{Decoder, DecoderOptions};

    const HOST: u64 = layout::HOT + 0x40;
    const PC: u64 = 0x40_1234;

    fn recovery() -> Recovery {
        let mut recovery = Recovery::default();
        recovery.add(HOST, HOST + 16, &[Mark { host: HOST as u32, pc: PC, rule: Rule::EXACT }]);
        recovery
    }

    /// Every instruction that stores the address: where, and how many bytes of it.
    #[test]
    fn the_caches_address_becomes_the_targets() {
        let cases: [(&[u8], usize, usize); 12] = [
            (&[0xd9, 0x33], 12, 4),            // fnstenv [rbx]
            (&[0x66, 0xd9, 0x33], 6, 2),       // fnstenv [rbx], 14 bytes
            (&[0xdd, 0x33], 12, 4),            // fnsave [rbx]
            (&[0x66, 0xdd, 0x33], 6, 2),       // fnsave [rbx], 94 bytes
            (&[0x0f, 0xae, 0x03], 8, 4),       // fxsave [rbx]
            (&[0x48, 0x0f, 0xae, 0x03], 8, 8), // fxsave64 [rbx]
            (&[0x0f, 0xae, 0x23], 8, 4),       // xsave [rbx]
            (&[0x48, 0x0f, 0xae, 0x23], 8, 8), // xsave64 [rbx]
            (&[0x0f, 0xc7, 0x23], 8, 4),       // xsavec [rbx]
            (&[0x48, 0x0f, 0xc7, 0x23], 8, 8), // xsavec64 [rbx]
            (&[0x0f, 0xae, 0x33], 8, 4),       // xsaveopt [rbx]
            (&[0x48, 0x0f, 0xae, 0x33], 8, 8), // xsaveopt64 [rbx]
        ];
        let recovery = recovery();
        for (code, offset, bytes) in cases {
            let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
            assert!(is_store(&instruction), "{code:02x?}");
            for (stored, expected) in [(HOST + 3, PC), (HOST + 0x1000, 0), (PC + 9, PC + 9), (0, 0)] {
                let mut area = vec![0xaau8; 600];
                area[HEADER_OFFSET as usize] = 1;
                area[offset..offset + bytes].copy_from_slice(&stored.to_le_bytes()[..bytes]);
                let mut wanted = area.clone();
                let expected = if bytes == 2 { 0 } else { expected };
                wanted[offset..offset + bytes].copy_from_slice(&expected.to_le_bytes()[..bytes]);
                let mut guest = Guest::new();
                guest.set_gpr(Gpr::Rax, 7);
                // SAFETY: the area is longer than any that these instructions write.
                unsafe {
                    correct_memory(&instruction, &guest, area.as_mut_ptr().expose_provenance() as u64, &recovery)
                };
                assert_eq!(area, wanted, "{code:02x?} {stored:x}");
            }
        }
    }

    #[test]
    fn what_xsave_was_not_asked_for_stays() {
        let instruction = Decoder::with_ip(64, &[0x48, 0x0f, 0xc7, 0x23], 0, DecoderOptions::NONE).decode();
        for (asked, written) in [(0xee, 1u8), (7, 6)] {
            let mut area = vec![0u8; 600];
            area[8..16].copy_from_slice(&HOST.to_le_bytes());
            area[HEADER_OFFSET as usize] = written;
            let before = area.clone();
            let mut guest = Guest::new();
            guest.set_gpr(Gpr::Rax, asked);
            // SAFETY: as above.
            unsafe { correct_memory(&instruction, &guest, area.as_mut_ptr().expose_provenance() as u64, &recovery()) };
            assert_eq!(area, before);
        }
    }

    #[test]
    fn the_saved_state_shows_the_targets_address() {
        let mut guest = Guest::new();
        guest.xsave[8..16].copy_from_slice(&(HOST + 1).to_le_bytes());
        correct_state(&mut guest, &recovery());
        assert_eq!(guest.xsave[8..16], PC.to_le_bytes());
        correct_state(&mut guest, &recovery());
        assert_eq!(guest.xsave[8..16], PC.to_le_bytes());
    }
}
