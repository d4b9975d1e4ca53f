//! The engine's handlers of signals that instructions raise.

use leakscope_translate::signal::{HandlerScope, Taken, take};

use crate::probe;

const STACK_BYTES: usize = 64 << 10;

/// Installs them, with a stack of their own.
pub(super) fn install() -> Result<(), String> {
    // SAFETY: the stack is mapped for this alone; the structures are live; the handler keeps to what handlers may do.
    let is_done = unsafe {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let stack =
            libc::mmap(std::ptr::null_mut(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, anonymous, -1, 0);
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_BYTES };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        stack != libc::MAP_FAILED
            && libc::sigaltstack(&alternate, std::ptr::null_mut()) == 0
            && [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP]
                .iter()
                .all(|&signal| libc::sigaction(signal, &action, std::ptr::null_mut()) == 0)
    };
    if is_done { Ok(()) } else { Err(format!("cannot handle signals: {}", std::io::Error::last_os_error())) }
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives valid pointers; the scope comes before anything that could use thread-local storage, and
    // the stack is the alternate one.
    unsafe {
        let _scope = HandlerScope::enter();
        let rip = (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
        if let Some(landing) = probe::landing(rip) {
            (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = landing as i64;
            return;
        }
        if take(signal, info, context) == Taken::NotGuest {
            say(b"leakscope-memcheck: error in the engine itself: signal ", signal as u64);
            say(b" at pc ", rip);
            say(b" address ", (*info).si_addr() as u64);
            libc::write(2, b"\n".as_ptr().cast(), 1);
            crate::engine::exit(125);
        }
    }
}

/// A word and a number, without allocating.
fn say(word: &[u8], number: u64) {
    let mut digits = [0u8; 18];
    digits[..2].copy_from_slice(b"0x");
    for (place, digit) in digits[2..].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * place) & 15) as usize];
    }
    // SAFETY: live buffers as long as said.
    unsafe {
        libc::write(2, word.as_ptr().cast(), word.len());
        libc::write(2, digits.as_ptr().cast(), digits.len());
    }
}
