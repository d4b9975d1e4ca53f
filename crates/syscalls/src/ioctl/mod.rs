//! `ioctl`, by its request.
//!
//! Newer requests say in their number how many bytes move and in which direction; older ones, and those that lie or
//! name further memory, stand in tables, one file for each kind of device, found by the byte that is the request's
//! type. Names and numbers: `linux/include/uapi`; the tests compare them with the headers.

mod block;
mod device;
mod file_system;
mod graphics;
mod machine;
mod net;
mod tty;

use crate::region::Param;
use crate::visit::Visit;

/// What happens to the memory that the third argument points to.
#[derive(Clone, Copy)]
enum Moves {
    /// There is none: no argument, or a number.
    Value,
    In(u32),
    Out(u32),
    InOut(u32),
    /// The structure is copied, and copied back; not all of it need be defined.
    CopyOut(u32),
    /// A string of at most so many bytes.
    Text(u32),
    By(fn(&mut Visit<'_>, Param, u64)),
}

/// A request: its name in the headers, in messages, its number, and what moves.
#[derive(Clone, Copy)]
struct Request {
    name: &'static str,
    shown: &'static str,
    number: u32,
    moves: Moves,
}

impl Request {
    /// Memcheck's words in the place of the name.
    const fn shown(self, shown: &'static str) -> Self {
        Self { shown, ..self }
    }
}

const fn request(name: &'static str, number: u32, moves: Moves) -> Request {
    Request { name, shown: name, number, moves }
}

const fn value(name: &'static str, number: u32) -> Request {
    request(name, number, Moves::Value)
}

const fn reads(name: &'static str, number: u32, bytes: u32) -> Request {
    request(name, number, Moves::In(bytes))
}

const fn writes(name: &'static str, number: u32, bytes: u32) -> Request {
    request(name, number, Moves::Out(bytes))
}

const fn both(name: &'static str, number: u32, bytes: u32) -> Request {
    request(name, number, Moves::InOut(bytes))
}

const fn copies(name: &'static str, number: u32, bytes: u32) -> Request {
    request(name, number, Moves::CopyOut(bytes))
}

const fn by(name: &'static str, number: u32, describe: fn(&mut Visit<'_>, Param, u64)) -> Request {
    request(name, number, Moves::By(describe))
}

/// `_IOC`: the directions are as the kernel sees its user: write is from the target to the kernel.
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn ioc(direction: u32, kind: u8, number: u8, size: u32) -> u32 {
    direction << 30 | size << 16 | (kind as u32) << 8 | number as u32
}

/// `_IO`.
const fn io(kind: u8, number: u8) -> u32 {
    ioc(0, kind, number, 0)
}

/// `_IOR`.
const fn ior(kind: u8, number: u8, size: u32) -> u32 {
    ioc(READ, kind, number, size)
}

/// `_IOW`.
const fn iow(kind: u8, number: u8, size: u32) -> u32 {
    ioc(WRITE, kind, number, size)
}

/// `_IOWR`.
const fn iowr(kind: u8, number: u8, size: u32) -> u32 {
    ioc(READ | WRITE, kind, number, size)
}

/// The tables, by the request's type.
const TABLES: &[(u8, &[Request])] = &[
    (0x00, file_system::BMAP),
    (0x03, block::DISK),
    (0x07, machine::BUS),
    (0x12, block::BLOCK),
    (0x15, file_system::NAMES),
    (b'!', machine::SECCOMP),
    (b'$', machine::PERF),
    (b'"', block::SCSI_GENERIC),
    (b'=', machine::CLOCK),
    (b'A', device::SOUND),
    (b'E', device::INPUT),
    (b'F', graphics::FRAME_BUFFER),
    (b'I', machine::NOTIFY),
    (b'K', tty::KEYBOARD),
    (b'L', block::LOOP),
    (b'P', device::OLD_SOUND),
    (b'R', machine::RANDOM),
    (b'S', block::SCSI),
    (b'T', tty::TERMINAL),
    (b'U', device::USER),
    (b'V', tty::VIRTUAL),
    (b'W', machine::WATCHDOG),
    (b'X', file_system::FREEZE),
    (b'd', graphics::DRM),
    (b'f', file_system::FILE),
    (b'p', machine::REAL_TIME_CLOCK),
    (b'v', file_system::VERSION),
    (0x89, net::SOCKET),
    (0x94, file_system::CLONE),
    (0xaa, machine::USER_FAULT),
    (0xab, block::NETWORK_BLOCK),
    (0xae, machine::VIRTUAL_MACHINE),
    (0xb7, machine::NAMESPACE),
    (0xe5, file_system::FUSE),
    (0xfd, block::MAPPER),
];

/// Types whose structures hold fields that are only written beside those that are read: what goes in is copied, but
/// need not be defined as a whole. V4L2, DRM, sound, KVM, media, USB, DVB, dma-buf.
const LENIENT: [u8; 13] = [b'V', b'd', b'A', b'H', b'Q', b'S', b'W', b'U', 0xae, b'|', b'o', b'b', b'T'];

fn find(number: u32) -> Option<&'static Request> {
    let kind = (number >> 8) as u8;
    let (_, table) = TABLES.iter().find(|(byte, _)| *byte == kind)?;
    table.iter().find(|request| request.number == number)
}

/// Requests of which programs pass no third argument: what its register holds then is nobody's business.
#[rustfmt::skip]
const WITHOUT_ARGUMENT: &[u32] = &[
    // Descriptors, terminals.
    0x5450, 0x5451, 0x540c, 0x540d, 0x541d, 0x5422, 0x5427, 0x5428, 0x5437,
    // Disks: block, loop, network; CD-ROMs, SCSI doors.
    0x125f, 0x1261, 0x4c01, 0x4c07, 0x4c82, 0xab03, 0xab04, 0xab08,
    0x5301, 0x5302, 0x5307, 0x5308, 0x5309, 0x5312, 0x5327, 0x5380, 0x5381,
    // Sound: free, hwsync, prepare, reset, start, drop, drain, resume, xrun, unlink; the old reset, sync, post.
    0x4112, 0x4122, 0x4140, 0x4141, 0x4142, 0x4143, 0x4144, 0x4147, 0x4148, 0x4161, 0x5000, 0x5001, 0x5008, 0x500e,
    // Input devices made by programs; filesystems frozen and thawed; namespaces; clocks' interrupts.
    0x5501, 0x5502, 0xc004_5877, 0xc004_5878, 0x894c, 0xb701, 0xb702, 0xb703,
    0x7001, 0x7002, 0x7003, 0x7004, 0x7005, 0x7006,
];

pub(crate) fn ioctl_registers(args: &[u64; 6]) -> u8 {
    if WITHOUT_ARGUMENT.contains(&(args[1] as u32)) { 0b011 } else { 0b111 }
}

pub(crate) fn ioctl(visit: &mut Visit<'_>) {
    let (number, address) = (visit.arg(1) as u32, visit.arg(2));
    match find(number) {
        Some(known) => move_bytes(visit, Param::of("ioctl", known.shown), address, known.moves),
        None => generic(visit, number, address),
    }
}

fn move_bytes(visit: &mut Visit<'_>, name: Param, address: u64, moves: Moves) {
    match moves {
        Moves::Value => {}
        Moves::In(size) => visit.input(name, address, u64::from(size)),
        Moves::Out(size) => visit.whole(name, address, u64::from(size)),
        Moves::InOut(size) => visit.inout(name, address, u64::from(size)),
        Moves::CopyOut(size) => visit.whole(name, address, u64::from(size)),
        Moves::Text(most) => visit.text(name, address, u64::from(most)),
        Moves::By(describe) => describe(visit, name, address),
    }
}

/// A request that stands in no table: its number says it. Without direction and size it moves nothing that we know of.
fn generic(visit: &mut Visit<'_>, number: u32, address: u64) {
    let (direction, size) = (number >> 30, u64::from(number >> 16 & 0x3fff));
    let is_lenient = LENIENT.contains(&((number >> 8) as u8));
    let name = Param::of("ioctl", "generic");
    match direction {
        WRITE => visit.input(name, address, size),
        READ => visit.whole(name, address, size),
        3 if is_lenient => visit.whole(name, address, size),
        3 => visit.inout(name, address, size),
        _ => {}
    }
}

/// Every request of the tables by its name in the headers, for comparing it with them.
#[doc(hidden)]
pub fn requests() -> impl Iterator<Item = (&'static str, u32)> {
    TABLES.iter().flat_map(|(_, table)| table.iter().map(|request| (request.name, request.number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_stands_in_the_table_of_its_type_and_once() {
        for (kind, table) in TABLES {
            for (place, request) in table.iter().enumerate() {
                assert_eq!((request.number >> 8) as u8, *kind, "{}", request.name);
                let twin = table[..place].iter().find(|other| other.number == request.number);
                assert!(twin.is_none(), "{} is {} too", request.name, twin.map_or("", |twin| twin.name));
            }
        }
    }
}
