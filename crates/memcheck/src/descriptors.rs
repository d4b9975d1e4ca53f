//! Open file descriptors for `--track-fds`: where each was opened, and what it is at the end.
//!
//! Source: Valgrind's manual on `--track-fds`, and its words (`syswrap-generic.c`).

use std::collections::HashMap;

use leakscope_ledger::events::{Descriptor, Event};
use leakscope_syscalls::Descriptor as Change;

use crate::engine::Memcheck;
use crate::stacks::StackId;

/// A descriptor that the target opened.
#[derive(Clone, Copy, Debug)]
struct Opened {
    /// Later ones are listed first.
    order: u64,
    stack: StackId,
}

/// Descriptors that the target opened and did not close.
#[derive(Clone, Debug, Default)]
pub struct Descriptors {
    opened: HashMap<i32, Opened>,
    last: u64,
}

impl Descriptors {
    fn open(&mut self, number: i32, stack: StackId) {
        // What takes the number of another one takes its place in the list, too.
        let order = self.opened.get(&number).map(|opened| opened.order);
        self.last += u64::from(order.is_none());
        self.opened.insert(number, Opened { order: order.unwrap_or(self.last), stack });
    }

    fn close(&mut self, first: i64, last: i64) {
        self.opened.retain(|&number, _| !(first..=last).contains(&i64::from(number)));
    }
}

impl Memcheck {
    /// A call opened or closed descriptors; its stack is in `walk` when it opened some.
    pub fn descriptors_changed(&mut self, change: Change) {
        match change {
            Change::Opened(number) => {
                let stack = self.stacks.intern(&self.walk);
                self.descriptors.open(number, stack);
            }
            Change::Closed(number) => self.descriptors.close(number.into(), number.into()),
            Change::ClosedRange(first, last) => self.descriptors.close(first.into(), last.into()),
            Change::CloseOnExec(..) | Change::ClosedByExec => {}
        }
    }

    /// Tells which descriptors are open: those that were opened last first, then those that were there before.
    pub fn tell_descriptors(&mut self) {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
        let numbers: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        let mut list: Vec<(u64, Descriptor)> = Vec::new();
        for number in numbers {
            // The directory itself was among them, and is closed by now.
            let Some((what, target)) = describe(number) else { continue };
            let opened = self.descriptors.opened.get(&number);
            let stack = opened.map_or_else(Vec::new, |opened| self.stacks.get(opened.stack).to_vec());
            list.push((opened.map_or(0, |opened| opened.order), Descriptor { number, what, target, stack }));
        }
        list.sort_by_key(|(order, descriptor)| std::cmp::Reverse((*order, descriptor.number)));
        self.output.tell(&Event::Descriptors(list.into_iter().map(|(_, descriptor)| descriptor).collect()));
        self.output.wait();
    }
}

/// What a descriptor is and what it is open on; `None` when it is not open.
fn describe(number: i32) -> Option<(String, Vec<u8>)> {
    use std::os::unix::ffi::OsStrExt;
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    let target = link.as_os_str().as_bytes();
    let socket = if target.starts_with(b"socket:") { describe_socket(number) } else { None };
    Some(socket.unwrap_or_else(|| ("file descriptor".to_owned(), target.to_vec())))
}

type Call = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

/// An address of a socket: bytes of the kernel's structure.
fn address(number: i32, call: Call) -> Option<Vec<u8>> {
    let mut bytes = [0_u8; 128];
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: a buffer as long as said; the kernel writes no more.
    let result = unsafe { call(number, bytes.as_mut_ptr().cast(), &mut length) };
    (result == 0).then(|| bytes[..(length as usize).min(bytes.len())].to_vec())
}

/// `AF_INET socket`, and its two ends.
fn describe_socket(number: i32) -> Option<(String, Vec<u8>)> {
    let own = address(number, libc::getsockname)?;
    let family = i32::from(u16::from_ne_bytes(own.get(..2)?.try_into().ok()?));
    if family == libc::AF_UNIX {
        let path = own.get(2..).unwrap_or_default();
        let name = match path.split_first() {
            // Abstract names begin with a zero.
            Some((0, rest)) if !rest.is_empty() => [b"@", rest].concat(),
            _ => path.split(|&byte| byte == 0).next().unwrap_or_default().to_vec(),
        };
        let name = if name.is_empty() { b"<unknown>".to_vec() } else { name };
        return Some(("AF_UNIX socket".to_owned(), name));
    }
    let name = match family {
        libc::AF_INET => "AF_INET socket",
        libc::AF_INET6 => "AF_INET6 socket",
        other => return Some((format!("pf-{other} socket"), Vec::new())),
    };
    let other = address(number, libc::getpeername).and_then(|other| internet(&other));
    let ends = format!("{} <-> {}", internet(&own)?, other.unwrap_or_else(|| "unbound".to_owned()));
    Some((name.to_owned(), ends.into_bytes()))
}

/// `127.0.0.1:80`, `[::1]:80`, out of a `struct sockaddr_in` or `sockaddr_in6`.
fn internet(bytes: &[u8]) -> Option<String> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    if family == libc::AF_INET6 {
        let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        return Some(format!("[{}]:{port}", std::net::Ipv6Addr::from(octets)));
    }
    let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let address = std::net::Ipv4Addr::from(octets);
    Some(if address.is_unspecified() && port == 0 { "unbound".to_owned() } else { format!("{address}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn descriptors_are_described() {
        let words = |number: i32| describe(number).map(|(what, on)| (what, String::from_utf8(on).unwrap()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(words(file.as_raw_fd()), Some(("file descriptor".into(), "/dev/null".into())));
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        assert_eq!(words(server.as_raw_fd()), Some(("AF_INET socket".into(), format!("127.0.0.1:{port} <-> unbound"))));
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let own = client.local_addr().unwrap().port();
        assert_eq!(
            words(client.as_raw_fd()),
            Some(("AF_INET socket".into(), format!("127.0.0.1:{own} <-> 127.0.0.1:{port}")))
        );
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(words(one.as_raw_fd()), Some(("AF_UNIX socket".into(), "<unknown>".into())));
        assert_eq!(words(-1), None);
    }

    #[test]
    fn numbers_that_are_used_again_keep_their_place() {
        let mut list = Descriptors::default();
        list.open(3, StackId(1));
        list.open(4, StackId(2));
        list.open(3, StackId(3));
        assert_eq!((list.opened[&3].order, list.opened[&3].stack), (1, StackId(3)));
        list.close(4, 10);
        list.open(4, StackId(4));
        assert_eq!(list.opened[&4].order, 3);
    }
}
