//! Single-steps code by the trap flag, natively and in the cache, and lists the guest's states on the way.

use super::machine::{CODE, HIGH_CODE, Machine, leave_native};
use crate::signal::{self, HandlerScope, Recovered};
use crate::{Guest, entry};

/// Where the guest is, and its integer registers.
pub type State = (u64, [u64; 16]);
static mut STATES: Vec<State> = Vec::new();
const TRAP: u64 = 0x100;

unsafe extern "C" fn on_trap(_number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: a handler on the machine's thread; the list has room reserved, so that nothing is allocated.
    unsafe {
        let _scope = HandlerScope::enter();
        let registers = &mut (*context).uc_mcontext.gregs;
        let states = &raw mut STATES;
        let list = &mut *states;
        let host = registers[libc::REG_RIP as usize] as u64;
        if let Some(Recovered { gpr, rip, .. }) = signal::recover(host, context) {
            list.push((rip, gpr));
        } else if (CODE..CODE + 0x4000).contains(&host) || (HIGH_CODE..HIGH_CODE + 0x4000).contains(&host) {
            let order =
                [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7].map(|index| registers[index as usize] as u64);
            list.push((host, order));
            if (*info).si_code == 128 {
                list.pop();
                leave_native(libc::SIGTRAP, info, context);
            }
        } else if !entry::is_here(host) {
            // Rust code is not stepped; the guest's flags bring the trap flag back.
            registers[libc::REG_EFL as usize] &= !(TRAP as i64);
        }
    }
}

fn with_steps(run: impl FnOnce()) -> Vec<State> {
    // SAFETY: the machine's lock keeps other tests away from handlers and list.
    unsafe {
        let states = &raw mut STATES;
        let list = &mut *states;
        list.clear();
        list.reserve(100_000);
        let mut old: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action.sa_sigaction = on_trap as *const () as usize;
        libc::sigaction(libc::SIGTRAP, &action, &mut old);
        run();
        libc::sigaction(libc::SIGTRAP, &old, std::ptr::null_mut());
        let mut found = std::mem::take(list);
        found.dedup();
        found
    }
}

/// The states before each instruction, natively.
pub fn native_states(machine: &mut Machine, guest: &Guest) -> Vec<State> {
    let mut stepped = guest.clone();
    stepped.rflags |= TRAP;
    with_steps(|| {
        machine.run_native(&stepped);
    })
}

/// What `recover` says at each instruction of the cache.
pub fn translated_states(machine: &mut Machine, guest: &Guest) -> Vec<State> {
    let mut stepped = guest.clone();
    stepped.rflags |= TRAP;
    with_steps(|| {
        machine.run_translated(&stepped);
    })
}

/// Holds what was recovered against the native run: each state must be one of its, in the same order, and none that
/// matters may be missing.
pub fn compare(native: &[State], translated: &[State]) -> Result<(), String> {
    let mut next = 0;
    for state in translated {
        let Some(found) = native[next..].iter().position(|known| known == state) else {
            return Err(format!("{state:x?} is no state of the guest after {:x?}", native[next]));
        };
        if found > 1 {
            return Err(format!("{found} instructions were passed over before {state:x?}"));
        }
        next += found;
    }
    if translated.len() * 10 <= native.len() * 9 {
        return Err(format!("{} of {} states", translated.len(), native.len()));
    }
    Ok(())
}
