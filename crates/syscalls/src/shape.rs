//! Structures that several families pass: vectors, socket addresses, masks. Layouts: the kernel's `include/uapi`.

use crate::region::Param;
use crate::visit::Visit;

/// The most elements of a vector; with more the kernel fails before it reads any (`UIO_MAXIOV`).
pub(crate) const MOST_VECTORS: u64 = 1024;
pub(crate) const IOVEC: u64 = 16;
pub(crate) const TIMESPEC: u32 = 16;
pub(crate) const TIMEVAL: u32 = 16;
pub(crate) const ITIMERSPEC: u32 = 32;
pub(crate) const SIGSET: u32 = 8;
pub(crate) const RUSAGE: u32 = 144;
pub(crate) const STAT: u32 = 144;
pub(crate) const STATX: u32 = 256;
pub(crate) const STATFS: u32 = 120;
/// `struct sockaddr_storage`: no socket writes a longer name.
pub(crate) const SOCKADDR_STORAGE: u64 = 128;

/// What happens to the bytes that a vector's elements name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    /// The kernel reads them.
    FromTarget,
    /// The kernel writes the first so many of them.
    ToTarget(u64),
}

/// A vector of `count` elements at `address`. `element` names one of them by its index.
pub(crate) fn iovecs(
    visit: &mut Visit<'_>,
    array: impl Into<Param>,
    element: impl Fn(u32) -> Param,
    (address, count): (u64, u64),
    moves: Moves,
) {
    if count > MOST_VECTORS {
        return;
    }
    visit.input(array, address, count * IOVEC);
    let mut left = match moves {
        Moves::ToTarget(written) => written,
        Moves::FromTarget => 0,
    };
    for index in 0..count {
        let at = address.wrapping_add(index * IOVEC);
        let (Some(base), Some(length)) = (visit.u64_at(at), visit.u64_at(at.wrapping_add(8))) else { return };
        if !visit.step() {
            return;
        }
        match moves {
            Moves::FromTarget => visit.input(element(index as u32), base, length),
            Moves::ToTarget(_) => {
                let written = left.min(length);
                left -= written;
                visit.output(element(index as u32), base, length, written);
            }
        }
    }
}

/// The names of a socket address's parts: of the family, and of what each family looks at.
pub(crate) struct SockaddrNames {
    pub(crate) family: &'static str,
    pub(crate) unix: &'static str,
    pub(crate) port: &'static str,
    pub(crate) addr: &'static str,
    pub(crate) port6: &'static str,
    pub(crate) flowinfo: &'static str,
    pub(crate) addr6: &'static str,
    pub(crate) scope: &'static str,
    pub(crate) pid: &'static str,
    pub(crate) groups: &'static str,
    pub(crate) data: &'static str,
}

/// Makes the names from the call and its parameter.
macro_rules! sockaddr_names {
    ($prefix:literal) => {
        &$crate::shape::SockaddrNames {
            family: concat!($prefix, ".sa_family)"),
            unix: concat!($prefix, ".sun_path)"),
            port: concat!($prefix, ".sin_port)"),
            addr: concat!($prefix, ".sin_addr)"),
            port6: concat!($prefix, ".sin6_port)"),
            flowinfo: concat!($prefix, ".sin6_flowinfo)"),
            addr6: concat!($prefix, ".sin6_addr)"),
            scope: concat!($prefix, ".sin6_scope_id)"),
            pid: concat!($prefix, ".nl_pid)"),
            groups: concat!($prefix, ".nl_groups)"),
            data: concat!($prefix, ".sa_data)"),
        }
    };
}
pub(crate) use sockaddr_names;

const AF_UNSPEC: u64 = 0;
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;

/// A socket address that the kernel reads: it copies `length` bytes and looks at the parts that its family has.
pub(crate) fn sockaddr(visit: &mut Visit<'_>, names: &'static SockaddrNames, address: u64, length: u64) {
    // Longer ones are refused unread; a negative length comes here as none.
    if address == 0 || length == 0 || length > SOCKADDR_STORAGE {
        return;
    }
    let family = visit.u16_at(address);
    let part = |visit: &mut Visit<'_>, name: &'static str, offset: u64, size: u64| {
        let size = size.min(length.saturating_sub(offset));
        visit.input(name, address.wrapping_add(offset), size);
    };
    part(visit, names.family, 0, 2);
    match family {
        Some(AF_UNIX) => unix_path(visit, names, address, length),
        Some(AF_INET) => {
            part(visit, names.port, 2, 2);
            part(visit, names.addr, 4, 4);
            visit.copied(names.data, address, length);
        }
        Some(AF_INET6) => {
            part(visit, names.port6, 2, 2);
            part(visit, names.flowinfo, 4, 4);
            part(visit, names.addr6, 8, 16);
            part(visit, names.scope, 24, 4);
            visit.copied(names.data, address, length);
        }
        Some(AF_NETLINK) => {
            part(visit, names.pid, 4, 4);
            part(visit, names.groups, 8, 4);
            visit.copied(names.data, address, length);
        }
        Some(AF_UNSPEC) | None => visit.copied(names.data, address, length),
        Some(_) => part(visit, names.data, 2, length),
    }
}

/// A path ends at its zero or at the length; an abstract name begins with a zero and is as long as the length says.
fn unix_path(visit: &mut Visit<'_>, names: &'static SockaddrNames, address: u64, length: u64) {
    let path = address.wrapping_add(2);
    let most = length.saturating_sub(2);
    let mut first = [0];
    if most > 0 && visit.memory().read_bytes(path, &mut first) && first == [0] {
        visit.input(names.unix, path, most);
    } else {
        visit.text(names.unix, path, most);
    }
    visit.copied(names.unix, address, length);
}

/// A structure with its own size in its first four bytes, at `offset` of them: the size, then as many bytes.
pub(crate) fn sized(
    visit: &mut Visit<'_>,
    (size_name, name): (&'static str, &'static str),
    address: u64,
    offset: u64,
    least: u64,
) {
    let at = address.wrapping_add(offset);
    visit.input(size_name, at, 4);
    let Some(size) = visit.u32_at(at) else { return };
    // 0 means the first version of the structure; more than a page is refused.
    let size = if size == 0 { least } else { size };
    if size <= 4096 {
        visit.input(name, address, size);
    }
}

/// The bytes of a node mask of `maxnode` bits, as `mbind` counts them (one less than it says, whole words).
pub(crate) fn nodemask_bytes(maxnode: u64) -> u64 {
    let bits = maxnode.saturating_sub(1);
    // More bits than a page holds are refused.
    if bits > 4096 * 8 { 0 } else { bits.div_ceil(64) * 8 }
}

/// The parts of a `struct sigevent` that tell what is to happen; the rest of its 64 bytes is padding.
pub(crate) fn sigevent(visit: &mut Visit<'_>, [value, signo, notify, thread]: [&'static str; 4], address: u64) {
    const SIGEV_THREAD_ID: u64 = 4;
    visit.input(value, address, 8);
    visit.input(signo, address.wrapping_add(8), 4);
    visit.input(notify, address.wrapping_add(12), 4);
    if visit.u32_at(address.wrapping_add(12)).is_some_and(|kind| kind & SIGEV_THREAD_ID != 0) {
        visit.input(thread, address.wrapping_add(16), 4);
    }
    visit.copied(notify, address, 64);
}
