//! Frames that the running kernel makes, taken in a handler, against ours for the same registers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// What a handler saw: the frame's address, and its bytes up to the end of the extended state.
static FRAME: AtomicU64 = AtomicU64::new(0);
static mut BYTES: [u8; 16384] = [0; 16384];
static LENGTH: AtomicU64 = AtomicU64::new(0);

const TOP_BYTES: u64 = 1 << 16;

unsafe extern "C" fn takes_frame(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let frame = context as u64 - CONTEXT_AT;
    // SAFETY: the kernel's frame: its pointer to the extended state, and that state's own length.
    unsafe {
        let extended = ((frame + 232) as *const u64).read_unaligned();
        let bytes = ((extended + SOFTWARE as u64 + 4) as *const u32).read_unaligned();
        let length = extended + u64::from(bytes) - frame;
        std::ptr::copy_nonoverlapping(frame as *const u8, (&raw mut BYTES).cast(), length as usize);
        FRAME.store(frame, Ordering::Relaxed);
        LENGTH.store(length, Ordering::Relaxed);
    }
}

/// The registers that a frame shows, as a guest.
fn guest_of(bytes: &[u8], extended_at: usize, extended: &Extended) -> (Guest, Returned) {
    let mut guest = Guest::new();
    let mut frame = [0; FRAME_BYTES as usize];
    frame.copy_from_slice(&bytes[..FRAME_BYTES as usize]);
    guest.rflags = word(bytes, 184);
    let returned = decode(&frame, &mut guest);
    let mut legacy = [0; LEGACY_BYTES];
    legacy.copy_from_slice(&bytes[extended_at..extended_at + LEGACY_BYTES]);
    let length = extended_length(&legacy, extended);
    decode_extended(&bytes[extended_at..extended_at + length], &mut guest, extended);
    (guest, returned)
}

fn take_one(on_altstack: bool) -> (u64, Vec<u8>, AltStack) {
    let mut memory = vec![0_u8; TOP_BYTES as usize];
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the stack lives until it is taken away again; the handler only copies.
    unsafe {
        let mut previous = std::mem::zeroed();
        libc::sigaltstack(&stack, &mut previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = takes_frame as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | if on_altstack { libc::SA_ONSTACK } else { 0 };
        libc::sigaction(libc::SIGWINCH, &action, std::ptr::null_mut());
        // Something to be seen in the upper halves.
        std::arch::asm!("pcmpeqd xmm9, xmm9", "vinsertf128 ymm9, ymm9, xmm9, 1", out("xmm9") _);
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGWINCH);
        libc::sigaltstack(&previous, std::ptr::null_mut());
        libc::signal(libc::SIGWINCH, libc::SIG_DFL);
        let length = LENGTH.load(Ordering::Relaxed) as usize;
        let bytes = std::slice::from_raw_parts((&raw const BYTES).cast::<u8>(), length).to_vec();
        let altstack = AltStack { start: memory.as_ptr() as u64, flags: 0, bytes: TOP_BYTES };
        (FRAME.load(Ordering::Relaxed), bytes, altstack)
    }
}

fn compare(on_altstack: bool) {
    let (address, bytes, altstack) = take_one(on_altstack);
    let extended_at = (word(&bytes, 232) - address) as usize;
    let software = extended_at + SOFTWARE;
    // This machine's own set of components, which may be larger than the guest's.
    let extended =
        Extended { features: word(&bytes, software + 8), bytes: word(&bytes, software + 16) as u32 as usize };
    let own = Extended::of_guest();
    assert_eq!(own.features & !extended.features, 0, "the kernel saves what the guest has");
    let kept = Extended {
        features: extended.features,
        bytes: extended.bytes.min(leakscope_translate::Guest::new().xsave.len()),
    };
    assert_eq!(kept, extended, "the guest's area holds what this kernel saves");

    let (guest, returned) = guest_of(&bytes, extended_at, &extended);
    let rsp = guest.gpr[4];
    let place = Place::new(rsp, on_altstack.then_some(&altstack), &extended).unwrap();
    assert_eq!(place.frame, address, "the frame's place");
    assert_eq!(place.extended, address + extended_at as u64);
    assert_eq!(place.end, address + bytes.len() as u64);
    assert_eq!(returned.altstack, altstack);

    let mut info = Info([0; INFO_BYTES]);
    info.0.copy_from_slice(&bytes[INFO_AT as usize..INFO_AT as usize + INFO_BYTES]);
    assert_eq!(
        (info.signal(), info.code(), info.sender()),
        (libc::SIGWINCH, libc::SI_TKILL, std::process::id() as i32)
    );
    // What the last fault of this thread left there is not the signal's.
    let trap = [word(&bytes, 200), word(&bytes, 208), word(&bytes, 224)];
    let content = Content { info: &info, mask: returned.mask, altstack, restorer: word(&bytes, 0), trap };
    let ours = encode(&guest, &place, &content);
    for at in (0..FRAME_BYTES as usize).step_by(8) {
        assert_eq!(word(&ours, at), word(&bytes, at), "word at {at}");
    }
    let state = encode_extended(&guest.xsave, &extended);
    let theirs = &bytes[extended_at..];
    assert_eq!(state.len(), theirs.len());
    for at in (0..state.len() - 4).step_by(8) {
        // The words behind `sw_reserved` are padding; components in their initial state may hold anything.
        let is_padding = (SOFTWARE + 20..LEGACY_BYTES).contains(&at);
        if !is_padding {
            assert_eq!(word(&state, at), word(theirs, at), "extended state at {at}");
        }
    }
    assert_eq!(&state[extended.bytes..], &theirs[extended.bytes..]);
}

#[test]
fn frames_are_the_kernels() {
    // One after the other: the handler has one place for its copy.
    compare(false);
    compare(true);
}

#[test]
fn an_alternate_stack_is_used_once() {
    let extended = Extended { features: 7, bytes: 0x340 };
    let stack = AltStack { start: 0x1_0000, flags: 0, bytes: 0x4000 };
    let first = Place::new(0x7000_0000, Some(&stack), &extended).unwrap();
    assert!(first.end <= 0x1_4000 && first.frame > 0x1_3000);
    let nested = Place::new(first.frame, Some(&stack), &extended).unwrap();
    assert!(nested.end <= first.frame - 128, "below what runs on it");
    assert_eq!(Place::new(0x1_0400, Some(&stack), &extended), None, "it overflows");
    let small = AltStack { bytes: 0x400, ..stack };
    assert_eq!(Place::new(0x7000_0000, Some(&small), &extended), None, "it is too small");
    assert!(!stack.is_on(0x1_0000) && stack.is_on(0x1_0001) && stack.is_on(0x1_4000) && !stack.is_on(0x1_4001));
    let disarmed = AltStack { flags: AUTODISARM, ..stack };
    assert!(!disarmed.is_on(0x1_2000));
}

#[test]
fn bytes_of_a_frame_cannot_break_the_cpu() {
    let extended = Extended::of_guest();
    let mut guest = Guest::new();
    decode_extended(&vec![0xff; extended.bytes], &mut guest, &extended);
    assert_eq!(word(&guest.xsave, LEGACY_BYTES), extended.features);
    assert_eq!(word(&guest.xsave, LEGACY_BYTES + 8), 0, "XCOMP_BV and reserved words fault");
    assert_eq!(guest.xsave[26..28], [0, 0], "so do bits of MXCSR that do not exist");
    let mut frame = [0; FRAME_BYTES as usize];
    put(&mut frame, 184, u64::MAX);
    decode(&frame, &mut guest);
    assert_eq!(guest.rflags & !SETTABLE_FLAGS, 0x202, "interrupts and privilege stay");
}
