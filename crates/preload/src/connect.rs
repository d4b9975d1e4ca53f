//! Asking the observer for a ledger: one connection, one question, one answer with a descriptor in it.

use leakscope_ledger::wire::{Hello, WIRE_VERSION, Welcome};
use leakscope_rt::raw::{self, nr};

const AF_UNIX: u16 = 1;
const SOCK_SEQPACKET_CLOEXEC: usize = 5 | 0o2_000_000;

/// Why there is no ledger.
#[derive(Clone, Copy, Debug)]
pub enum NoLedger {
    /// Nobody answers: the observer has ended, or another network namespace hides it.
    Unreachable,
    /// The observer refuses, or the answer makes no sense.
    Refused,
}

#[repr(C)]
struct Address {
    family: u16,
    path: [u8; 108],
}

fn syscall(number: usize, args: [usize; 6]) -> Result<usize, raw::Errno> {
    // SAFETY: the callers below pass pointers to their own locals with the right lengths.
    unsafe { raw::syscall(number, args) }
}

/// The name and token in `NAME:TOKEN`.
fn parse(value: &[u8]) -> Option<(&[u8], [u8; 16])> {
    let colon = value.iter().rposition(|&byte| byte == b':')?;
    let (name, digits) = (value.get(..colon)?, value.get(colon + 1..)?);
    let mut token = [0u8; 16];
    if digits.len() != 32 || name.is_empty() || name.len() > 106 {
        return None;
    }
    for (byte, pair) in token.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some((name, token))
}

/// Asks for a ledger. Returns its descriptor, to be closed by the caller, and its length in bytes.
///
/// # Errors
/// When there is none to be had.
pub fn ask(value: &[u8], origin: u32) -> Result<(i32, u64), NoLedger> {
    let (name, token) = parse(value).ok_or(NoLedger::Refused)?;
    let socket = syscall(nr::SOCKET, [AF_UNIX as usize, SOCK_SEQPACKET_CLOEXEC, 0, 0, 0, 0])
        .map_err(|_| NoLedger::Unreachable)?;
    limit_waiting(socket);
    let result = converse(socket, name, token, origin);
    raw::close(socket as i32);
    result
}

/// An observer that has been stopped must not stop the program as well.
fn limit_waiting(socket: usize) {
    const SETSOCKOPT: usize = 54;
    const SOL_SOCKET: usize = 1;
    const RECEIVE_AND_SEND_TIMEOUTS: [usize; 2] = [20, 21];
    let five_seconds = [5u64, 0];
    for option in RECEIVE_AND_SEND_TIMEOUTS {
        let _ = syscall(SETSOCKOPT, [socket, SOL_SOCKET, option, five_seconds.as_ptr() as usize, 16, 0]);
    }
}

fn converse(socket: usize, name: &[u8], token: [u8; 16], origin: u32) -> Result<(i32, u64), NoLedger> {
    let mut address = Address { family: AF_UNIX, path: [0; 108] };
    // An abstract name: a zero byte, then the name.
    address.path.get_mut(1..=name.len()).ok_or(NoLedger::Refused)?.copy_from_slice(name);
    let length = 3 + name.len();
    syscall(nr::CONNECT, [socket, &raw const address as usize, length, 0, 0, 0]).map_err(|_| NoLedger::Unreachable)?;
    let hello = Hello { version: WIRE_VERSION, origin, token, pid: raw::getpid(), parent_pid: raw::getppid() }.encode();
    const MSG_NOSIGNAL: usize = 0x4000;
    syscall(nr::SENDTO, [socket, hello.as_ptr() as usize, hello.len(), MSG_NOSIGNAL, 0, 0])
        .map_err(|_| NoLedger::Unreachable)?;
    receive(socket)
}

#[repr(C)]
struct IoVec {
    base: usize,
    bytes: usize,
}

#[repr(C)]
struct MessageHeader {
    name: usize,
    name_bytes: u32,
    vectors: usize,
    vector_count: usize,
    control: usize,
    control_bytes: usize,
    flags: i32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct Control {
    bytes: usize,
    level: i32,
    kind: i32,
    fd: i32,
    padding: i32,
}

fn receive(socket: usize) -> Result<(i32, u64), NoLedger> {
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    let mut answer = [0u8; Welcome::BYTES];
    let mut control = Control::default();
    let vector = IoVec { base: answer.as_mut_ptr() as usize, bytes: answer.len() };
    let mut message = MessageHeader {
        name: 0,
        name_bytes: 0,
        vectors: &raw const vector as usize,
        vector_count: 1,
        control: &raw mut control as usize,
        control_bytes: size_of::<Control>(),
        flags: 0,
    };
    let got = loop {
        match syscall(nr::RECVMSG, [socket, &raw mut message as usize, MSG_CMSG_CLOEXEC, 0, 0, 0]) {
            Err(raw::Errno(4)) => {}
            other => break other.map_err(|_| NoLedger::Unreachable)?,
        }
    };
    let welcome = answer.get(..got).and_then(Welcome::decode).ok_or(NoLedger::Refused)?;
    let has_fd = control.bytes >= 20 && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
    if welcome.version != WIRE_VERSION || welcome.status != 0 || !has_fd {
        return Err(NoLedger::Refused);
    }
    Ok((control.fd, welcome.file_bytes))
}
