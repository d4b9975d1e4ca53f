//! Which descriptors a call opened and closed, for `--track-fds`.

use crate::effects::Effects;
use crate::memory::{Memory, read_array};
use crate::table::lookup;
use crate::visit::is_error;

/// What happened to a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Descriptor {
    /// It is open now (and whatever had its number before is closed).
    Opened(i32),
    /// It is closed now.
    Closed(i32),
    /// All from the first to the second are closed now.
    ClosedRange(u32, u32),
    /// All from the first to the second will be closed by the next `execve`.
    CloseOnExec(u32, u32),
    /// A new program runs: those that were marked for it are closed.
    ClosedByExec,
}

const CLONE_PIDFD: u64 = 0x1000;

/// Gives to `sink` what call `number` did to the descriptors of the target. To be asked after the call, with what it
/// returned; a call that failed did nothing, but for `close`, which closes even if it reports an error.
///
/// `ioctl`s that return a descriptor are known by their request; a structure that holds one is looked into for none of
/// them (DRM's and dma-buf's).
pub fn descriptors(number: u64, args: &[u64; 6], result: i64, memory: &dyn Memory, sink: &mut dyn FnMut(Descriptor)) {
    const EBADF: i64 = -9;
    let Some(call) = lookup(number) else { return };
    let arg = |index: usize| call.value(args, index);
    if call.name == "close" && result != EBADF {
        return sink(Descriptor::Closed(arg(0) as i32));
    }
    if is_error(result) || !(call.effects.has(Effects::OPENS) || call.effects.has(Effects::CLOSES)) {
        return;
    }
    let opened = Descriptor::Opened(result as i32);
    match call.name {
        "close_range" if arg(2) & CLOSE_RANGE_CLOEXEC != 0 => {
            sink(Descriptor::CloseOnExec(arg(0) as u32, arg(1) as u32));
        }
        "close_range" => sink(Descriptor::ClosedRange(arg(0) as u32, arg(1) as u32)),
        "execve" | "execveat" => sink(Descriptor::ClosedByExec),
        "pipe" | "pipe2" => pair(memory, arg(0), sink),
        "socketpair" => pair(memory, arg(3), sink),
        "recvmsg" => received(memory, arg(1), sink),
        "recvmmsg" => {
            for index in 0..(result as u64).min(1024) {
                received(memory, arg(1).wrapping_add(index * 64), sink);
            }
        }
        "fcntl" if matches!(arg(1), F_DUPFD | F_DUPFD_CLOEXEC) => sink(opened),
        "fcntl" => {}
        "ioctl" if RETURN_DESCRIPTORS.contains(&(arg(1) as u32)) => sink(opened),
        "ioctl" => {}
        "bpf" if BPF_RETURN_DESCRIPTORS.contains(&arg(0)) => sink(opened),
        "bpf" => {}
        "seccomp" if arg(0) == 1 && arg(1) & SECCOMP_NEW_LISTENER != 0 => sink(opened),
        "seccomp" => {}
        "landlock_create_ruleset" if arg(2) != 0 => {}
        "clone" if arg(0) & CLONE_PIDFD != 0 && result > 0 => at(memory, arg(2), sink),
        "clone3" if result > 0 => process_descriptor(memory, arg(0), sink),
        "clone" | "clone3" => {}
        // A signalfd that was given only changes.
        "signalfd" | "signalfd4" if arg(0) as i32 >= 0 => {}
        _ => sink(opened),
    }
}

const CLOSE_RANGE_CLOEXEC: u64 = 4;
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
const SECCOMP_NEW_LISTENER: u64 = 8;

/// `TIOCGPTPEER`; `KVM_CREATE_VM`, `KVM_CREATE_VCPU`, `KVM_GET_STATS_FD`; `NS_GET_USERNS`, `NS_GET_PARENT`;
/// `SIOCGSKNS`, `TUNGETDEVNETNS`; `USERFAULTFD_IOC_NEW`; `PIDFD_GET_*_NAMESPACE`.
const RETURN_DESCRIPTORS: [u32; 19] = [
    0x5441, 0xae01, 0xae41, 0xaece, 0xb701, 0xb702, 0x894c, 0x54e3, 0xaa00, 0xff01, 0xff02, 0xff03, 0xff04, 0xff05,
    0xff06, 0xff07, 0xff08, 0xff09, 0xff0a,
];

/// Maps, programs, pinned objects, by number, tracepoints, types, links, statistics, iterators, tokens.
const BPF_RETURN_DESCRIPTORS: [u64; 13] = [0, 5, 7, 13, 14, 17, 18, 19, 28, 30, 32, 33, 36];

fn at(memory: &dyn Memory, address: u64, sink: &mut dyn FnMut(Descriptor)) {
    if let Some(bytes) = read_array(memory, address) {
        sink(Descriptor::Opened(i32::from_le_bytes(bytes)));
    }
}

fn pair(memory: &dyn Memory, address: u64, sink: &mut dyn FnMut(Descriptor)) {
    at(memory, address, sink);
    at(memory, address.wrapping_add(4), sink);
}

fn word(memory: &dyn Memory, address: u64) -> u64 {
    read_array(memory, address).map_or(0, u64::from_le_bytes)
}

fn process_descriptor(memory: &dyn Memory, args: u64, sink: &mut dyn FnMut(Descriptor)) {
    if word(memory, args) & CLONE_PIDFD != 0 {
        at(memory, word(memory, args.wrapping_add(8)), sink);
    }
}

/// The control messages of a `struct msghdr` that bring descriptors, or the process that sent it.
fn received(memory: &dyn Memory, message: u64, sink: &mut dyn FnMut(Descriptor)) {
    const SOL_SOCKET: u64 = 1;
    const SCM_RIGHTS: u64 = 1;
    const SCM_PIDFD: u64 = 4;
    const HEAD: u64 = 16;
    const MOST_DESCRIPTORS: u64 = 253;
    const MOST_MESSAGES: usize = 64;
    let control = word(memory, message.wrapping_add(32));
    let length = word(memory, message.wrapping_add(40));
    let mut offset: u64 = 0;
    for _ in 0..MOST_MESSAGES {
        if control == 0 || offset.saturating_add(HEAD) > length {
            return;
        }
        let head = control.wrapping_add(offset);
        let size = word(memory, head);
        if size < HEAD || size > length - offset {
            return;
        }
        let kind = word(memory, head.wrapping_add(8));
        let (level, kind) = (kind & 0xffff_ffff, kind >> 32);
        if level == SOL_SOCKET && matches!(kind, SCM_RIGHTS | SCM_PIDFD) {
            for index in 0..((size - HEAD) / 4).min(MOST_DESCRIPTORS) {
                at(memory, head.wrapping_add(HEAD + index * 4), sink);
            }
        }
        offset = offset.saturating_add(size.div_ceil(8) * 8);
    }
}
