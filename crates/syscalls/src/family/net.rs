//! Sockets. Memcheck calls most of their parameters by the old `socketcall`.

use crate::region::Param;
use crate::rule::{by, bytes, count_of, input, output};
use crate::shape::{IOVEC, Moves, SOCKADDR_STORAGE, iovecs, sockaddr, sockaddr_names};
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// Sockets.
    NET:
    41 socket(domain: int, r#type: int, protocol: int) is OPENS;
    42 connect(sockfd: int, serv_addr: ptr, addrlen: int) [by(connect)] is BLOCKS;
    43 accept(s: int, addr: ptr, addrlen: ptr) [by(accept)] is OPENS | BLOCKS;
    44 sendto(s: int, msg: ptr, len: ulong, flags: uint, to: ptr, tolen: int)
        [input(msg, count_of(len)).called("socketcall.sendto(msg)"), by(send_name)] is BLOCKS;
    45 recvfrom(s: int, buf: ptr, len: ulong, flags: uint, from: ptr, fromlen: ptr)
        [output(buf, count_of(len)).result().called("socketcall.recvfrom(buf)"), by(receive_name)] is BLOCKS;
    46 sendmsg(s: int, msg: ptr, flags: uint) [by(sendmsg)] is BLOCKS;
    47 recvmsg(s: int, msg: ptr, flags: uint) [by(recvmsg)] is OPENS | BLOCKS;
    48 shutdown(s: int, how: int);
    49 bind(sockfd: int, my_addr: ptr, addrlen: int) [by(bind)];
    50 listen(s: int, backlog: int);
    51 getsockname(s: int, name: ptr, namelen: ptr) [by(getsockname)];
    52 getpeername(s: int, name: ptr, namelen: ptr) [by(getpeername)];
    53 socketpair(d: int, r#type: int, protocol: int, sv: ptr)
        [output(sv, bytes(8)).called("socketcall.socketpair(sv)")] is OPENS;
    54 setsockopt(s: int, level: int, optname: int, optval: ptr, optlen: int) [by(setsockopt)];
    55 getsockopt(s: int, level: int, optname: int, optval: ptr, optlen: ptr) [by(getsockopt)];
    288 accept4(s: int, addr: ptr, addrlen: ptr, flags: int) [by(accept)] is OPENS | BLOCKS;
    299 recvmmsg(s: int, mmsg: ptr, vlen: uint, flags: uint, timeout: ptr) [by(recvmmsg)] is OPENS | BLOCKS;
    307 sendmmsg(s: int, mmsg: ptr, vlen: uint, flags: uint) [by(sendmmsg)] is BLOCKS;
}

fn connect(visit: &mut Visit<'_>) {
    sockaddr(visit, sockaddr_names!("socketcall.connect(serv_addr"), visit.arg(1), visit.count(2));
}

fn bind(visit: &mut Visit<'_>) {
    sockaddr(visit, sockaddr_names!("socketcall.bind(my_addr"), visit.arg(1), visit.count(2));
}

fn send_name(visit: &mut Visit<'_>) {
    sockaddr(visit, sockaddr_names!("socketcall.sendto(to"), visit.arg(4), visit.count(5));
}

/// A name that the kernel writes, in a buffer whose length it is told and then tells. What it tells may be more than
/// the buffer held: the name was cut then.
fn name_and_length(visit: &mut Visit<'_>, name: &'static str, length_name: &'static str, at: (u64, u64)) {
    let (address, length_at) = at;
    visit.input(length_name, length_at, 4);
    let now = visit.u32_or_0(length_at);
    let room = visit.keep(0, now);
    // A negative length is refused.
    let room = if room as i32 > 0 { room } else { 0 };
    visit.output(name, address, room, now.min(SOCKADDR_STORAGE));
    if !visit.is_before() {
        visit.whole(length_name, length_at, 4);
    }
}

fn accept(visit: &mut Visit<'_>) {
    if visit.arg(1) != 0 {
        let at = (visit.arg(1), visit.arg(2));
        name_and_length(visit, "socketcall.accept(addr)", "socketcall.accept(addrlen_in)", at);
    }
}

fn receive_name(visit: &mut Visit<'_>) {
    if visit.arg(4) != 0 {
        let at = (visit.arg(4), visit.arg(5));
        name_and_length(visit, "socketcall.recvfrom(from)", "socketcall.recvfrom(fromlen_in)", at);
    }
}

fn getsockname(visit: &mut Visit<'_>) {
    let at = (visit.arg(1), visit.arg(2));
    name_and_length(visit, "socketcall.getsockname(name)", "socketcall.getsockname(namelen_in)", at);
}

fn getpeername(visit: &mut Visit<'_>) {
    let at = (visit.arg(1), visit.arg(2));
    name_and_length(visit, "socketcall.getpeername(name)", "socketcall.getpeername(namelen_in)", at);
}

const SOL_SOCKET: i64 = 1;
/// `SO_ATTACH_FILTER`, `SO_ATTACH_REUSEPORT_CBPF`; the first is `SO_GET_FILTER` too.
const FILTERS: [i64; 2] = [26, 51];

fn setsockopt(visit: &mut Visit<'_>) {
    let (address, length) = (visit.arg(3), visit.count(4));
    let is_filter = visit.int(1) == SOL_SOCKET && FILTERS.contains(&visit.int(2));
    if is_filter && length >= 16 {
        return filter_program(visit, "socketcall.setsockopt(optval)", "socketcall.setsockopt(optval.filter)", address);
    }
    if address != 0 {
        visit.input("socketcall.setsockopt(optval)", address, length);
    }
}

/// `struct sock_fprog`: how many instructions of 8 bytes, and where.
pub(crate) fn filter_program(visit: &mut Visit<'_>, name: &'static str, filter: &'static str, address: u64) {
    visit.input(name, address, 2);
    visit.input(name, address.wrapping_add(8), 8);
    if let (Some(count), Some(at)) = (visit.u16_at(address), visit.u64_at(address.wrapping_add(8))) {
        visit.input(filter, at, count * 8);
    }
}

fn getsockopt(visit: &mut Visit<'_>) {
    const ERANGE: i64 = 34;
    let (address, length_at) = (visit.arg(3), visit.arg(4));
    // Programs ask so whether something is a socket; Memcheck leaves it alone, too.
    if address == 0 && length_at == 0 {
        return;
    }
    let is_filter = visit.int(1) == SOL_SOCKET && visit.int(2) == FILTERS[0];
    // A filter's length counts instructions.
    let unit = if is_filter { 8 } else { 1 };
    visit.input("socketcall.getsockopt(optlen)", length_at, 4);
    let now = visit.u32_or_0(length_at);
    let room = visit.keep(0, now);
    let room = if room as i32 > 0 { room } else { 0 };
    if address != 0 {
        visit.output("socketcall.getsockopt(optval)", address, room * unit, now * unit);
    }
    let told = visit.error() == 0 || visit.error() == ERANGE;
    if !visit.is_before() {
        visit.output_if("socketcall.getsockopt(optlen_out)", length_at, 4, told);
    }
}

const MSGHDR: u64 = 56;
const MMSGHDR: u64 = 64;

/// The fields of a `struct msghdr`.
struct Message {
    name: u64,
    name_length: u64,
    vector: (u64, u64),
    control: (u64, u64),
}

impl Message {
    fn read(visit: &Visit<'_>, at: u64) -> Option<Self> {
        let word = |offset: u64| visit.u64_at(at.wrapping_add(offset));
        Some(Self {
            name: word(0)?,
            name_length: visit.u32_at(at.wrapping_add(8))?,
            vector: (word(16)?, word(24)?),
            control: (word(32)?, word(40)?),
        })
    }
}

/// The names of a message's parts; each `#` is the message's index, or an element's.
struct MessageNames {
    whole: &'static str,
    name: &'static str,
    vector: &'static str,
    element: &'static str,
    control: &'static str,
}

macro_rules! message_names {
    ($start:literal) => {
        MessageNames {
            whole: concat!($start, ")"),
            name: concat!($start, ".msg_name)"),
            vector: concat!($start, ".msg_iov)"),
            element: concat!($start, ".msg_iov[#])"),
            control: concat!($start, ".msg_control)"),
        }
    };
}

/// How a message's names are numbered.
#[derive(Clone, Copy)]
enum Numbered {
    Alone,
    In(u32),
}

impl Numbered {
    fn name(self, text: &'static str) -> Param {
        match self {
            Self::Alone => Param::from(text),
            Self::In(message) => Param::indexed(text, [message, 0]),
        }
    }

    fn element(self, text: &'static str, element: u32) -> Param {
        match self {
            Self::Alone => Param::indexed(text, [element, 0]),
            Self::In(message) => Param::indexed(text, [message, element]),
        }
    }
}

/// The header's two runs of bytes; four bytes of padding stand between them.
fn header(visit: &mut Visit<'_>, names: &MessageNames, numbered: Numbered, at: u64) -> Option<Message> {
    visit.input(numbered.name(names.whole), at, 12);
    visit.input(numbered.name(names.whole), at.wrapping_add(16), 32);
    Message::read(visit, at)
}

fn send_message(visit: &mut Visit<'_>, names: &MessageNames, numbered: Numbered, at: u64) {
    let Some(message) = header(visit, names, numbered, at) else { return };
    // The flags are copied with the rest, but the call's own are what counts.
    visit.copied(numbered.name(names.whole), at, MSGHDR);
    if message.name != 0 && message.name_length as i32 > 0 {
        visit.input(numbered.name(names.name), message.name, message.name_length.min(SOCKADDR_STORAGE));
    }
    let element = |index| numbered.element(names.element, index);
    iovecs(visit, numbered.name(names.vector), element, message.vector, Moves::FromTarget);
    let (control, length) = message.control;
    if control != 0 {
        visit.input(numbered.name(names.control), control, length);
    }
}

/// `received`: the bytes that came; none if the call or this message failed. `slot`: where the name's length is kept.
fn receive_message(
    visit: &mut Visit<'_>,
    names: &MessageNames,
    numbered: Numbered,
    at: u64,
    received: Option<u64>,
    slot: usize,
) {
    let Some(message) = header(visit, names, numbered, at) else { return };
    visit.copied(numbered.name(names.whole), at, MSGHDR);
    let came = received.is_some();
    let part = |visit: &mut Visit<'_>, name: &'static str, address: u64, room: u64, written: u64| {
        if visit.is_before() || came {
            visit.output(numbered.name(name), address, room, written);
        }
    };
    part(visit, names.whole, at.wrapping_add(48), 4, 4);
    if !visit.is_before() {
        part(visit, names.whole, at.wrapping_add(40), 8, 8);
    }
    if message.name != 0 {
        let room = visit.keep(slot, message.name_length).min(SOCKADDR_STORAGE);
        part(visit, names.name, message.name, room, message.name_length);
        if !visit.is_before() {
            part(visit, names.whole, at.wrapping_add(8), 4, 4);
        }
    }
    let element = |index| numbered.element(names.element, index);
    if visit.is_before() || came {
        let moves = Moves::ToTarget(received.unwrap_or(0));
        iovecs(visit, numbered.name(names.vector), element, message.vector, moves);
    }
    let (control, length) = message.control;
    if control != 0 {
        part(visit, names.control, control, length, length);
    }
}

fn sendmsg(visit: &mut Visit<'_>) {
    send_message(visit, &message_names!("sendmsg(msg"), Numbered::Alone, visit.arg(1));
}

fn recvmsg(visit: &mut Visit<'_>) {
    let received = (visit.error() == 0).then(|| visit.returned());
    receive_message(visit, &message_names!("recvmsg(msg"), Numbered::Alone, visit.arg(1), received, 0);
}

/// More messages than this are left alone (`UIO_MAXIOV`).
const MOST_MESSAGES: u64 = 1024;

fn sendmmsg(visit: &mut Visit<'_>) {
    let names = message_names!("sendmsg(mmsg[#].msg_hdr");
    for index in 0..visit.arg(2).min(MOST_MESSAGES) {
        let at = visit.arg(1).wrapping_add(index * MMSGHDR);
        if !visit.step() {
            return;
        }
        let numbered = Numbered::In(index as u32);
        if visit.is_before() {
            send_message(visit, &names, numbered, at);
            if visit.u32_at(at).is_none() {
                return;
            }
        }
        let sent = visit.is_before() || index < visit.returned();
        visit.output_if(numbered.name("sendmmsg(mmsg[#].msg_len)"), at.wrapping_add(MSGHDR), 4, sent);
    }
}

fn recvmmsg(visit: &mut Visit<'_>) {
    let names = message_names!("recvmsg(mmsg[#].msg_hdr");
    for index in 0..visit.arg(2).min(MOST_MESSAGES) {
        let at = visit.arg(1).wrapping_add(index * MMSGHDR);
        if !visit.step() || (!visit.is_before() && index >= visit.returned()) {
            break;
        }
        let numbered = Numbered::In(index as u32);
        let received = visit.u32_at(at.wrapping_add(MSGHDR));
        receive_message(visit, &names, numbered, at, received, 1 + index as usize);
        visit.whole(numbered.name("recvmmsg(mmsg[#].msg_len)"), at.wrapping_add(MSGHDR), 4);
        if received.is_none() {
            break;
        }
    }
    let timeout = visit.arg(4);
    if timeout != 0 {
        visit.input("recvmmsg(timeout)", timeout, IOVEC);
        if !visit.is_before() {
            visit.whole("recvmmsg(timeout)", timeout, IOVEC);
        }
    }
}
