//! Disks: block devices, loop devices, SCSI, CD-ROMs, device mapper.

use super::{Request, both, by, copies, io, ior, iow, iowr, reads, value, writes};
use crate::region::Param;
use crate::shape::{Moves, iovecs};
use crate::visit::Visit;

pub(super) const BLOCK: &[Request] = &[
    reads("BLKROSET", io(0x12, 93), 4),
    writes("BLKROGET", io(0x12, 94), 4),
    value("BLKRRPART", io(0x12, 95)),
    writes("BLKGETSIZE", io(0x12, 96), 8),
    value("BLKFLSBUF", io(0x12, 97)),
    value("BLKRASET", io(0x12, 98)),
    writes("BLKRAGET", io(0x12, 99), 8),
    value("BLKFRASET", io(0x12, 100)),
    writes("BLKFRAGET", io(0x12, 101), 8),
    value("BLKSECTSET", io(0x12, 102)),
    writes("BLKSECTGET", io(0x12, 103), 2),
    writes("BLKSSZGET", io(0x12, 104), 4),
    by("BLKPG", io(0x12, 105), partition),
    // These two say that they move a `size_t`, and move an `int`.
    writes("BLKBSZGET", ior(0x12, 112, 8), 4),
    reads("BLKBSZSET", iow(0x12, 113, 8), 4),
    writes("BLKGETSIZE64", ior(0x12, 114, 8), 8),
    reads("BLKDISCARD", io(0x12, 119), 16),
    writes("BLKIOMIN", io(0x12, 120), 4),
    writes("BLKIOOPT", io(0x12, 121), 4),
    writes("BLKALIGNOFF", io(0x12, 122), 4),
    writes("BLKPBSZGET", io(0x12, 123), 4),
    writes("BLKDISCARDZEROES", io(0x12, 124), 4),
    reads("BLKSECDISCARD", io(0x12, 125), 16),
    writes("BLKROTATIONAL", io(0x12, 126), 2),
    reads("BLKZEROOUT", io(0x12, 127), 16),
    writes("BLKGETDISKSEQ", ior(0x12, 128, 8), 8),
    by("BLKREPORTZONE", iowr(0x12, 130, 16), zones),
    reads("BLKRESETZONE", iow(0x12, 131, 16), 16),
];

/// `struct blkpg_ioctl_arg`: operation, flags, length, and where the partition is described.
fn partition(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 12);
    visit.input(name, address.wrapping_add(16), 8);
    visit.input("ioctl(BLKPG).data", visit.u64_or_0(address.wrapping_add(16)), 24);
}

/// `struct blk_zone_report`: a sector and how many zones fit, then zones of 64 bytes.
fn zones(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 12);
    let now = visit.u32_or_0(address.wrapping_add(8));
    let room = visit.keep(0, now);
    visit.output(name, address.wrapping_add(16), room * 64, now * 64);
    if !visit.is_before() {
        visit.whole(name, address, 16);
    }
}

pub(super) const DISK: &[Request] = &[
    writes("HDIO_GETGEO", 0x0301, 16),
    writes("HDIO_GET_UNMASKINTR", 0x0302, 8),
    writes("HDIO_GET_MULTCOUNT", 0x0304, 8),
    writes("HDIO_GET_KEEPSETTINGS", 0x0308, 8),
    writes("HDIO_GET_32BIT", 0x0309, 8),
    writes("HDIO_GET_NOWERR", 0x030a, 8),
    writes("HDIO_GET_DMA", 0x030b, 8),
    writes("HDIO_GET_IDENTITY", 0x030d, 512),
    both("HDIO_DRIVE_CMD", 0x031f, 4),
];

const LOOP_INFO: u32 = 168;
const LOOP_INFO64: u32 = 232;

pub(super) const LOOP: &[Request] = &[
    value("LOOP_SET_FD", 0x4c00),
    value("LOOP_CLR_FD", 0x4c01),
    reads("LOOP_SET_STATUS", 0x4c02, LOOP_INFO),
    writes("LOOP_GET_STATUS", 0x4c03, LOOP_INFO),
    reads("LOOP_SET_STATUS64", 0x4c04, LOOP_INFO64),
    writes("LOOP_GET_STATUS64", 0x4c05, LOOP_INFO64),
    value("LOOP_CHANGE_FD", 0x4c06),
    value("LOOP_SET_CAPACITY", 0x4c07),
    value("LOOP_SET_DIRECT_IO", 0x4c08),
    value("LOOP_SET_BLOCK_SIZE", 0x4c09),
    reads("LOOP_CONFIGURE", 0x4c0a, 304),
    value("LOOP_CTL_ADD", 0x4c80),
    value("LOOP_CTL_REMOVE", 0x4c81),
    value("LOOP_CTL_GET_FREE", 0x4c82),
];

pub(super) const NETWORK_BLOCK: &[Request] = &[
    value("NBD_SET_SOCK", io(0xab, 0)),
    value("NBD_SET_BLKSIZE", io(0xab, 1)),
    value("NBD_SET_SIZE", io(0xab, 2)),
    value("NBD_DO_IT", io(0xab, 3)),
];

/// `struct dm_ioctl` says in its fourth word how long it is with what follows it.
pub(super) const MAPPER: &[Request] = &[
    by("DM_VERSION", iowr(0xfd, 0, 312), mapper),
    by("DM_REMOVE_ALL", iowr(0xfd, 1, 312), mapper),
    by("DM_LIST_DEVICES", iowr(0xfd, 2, 312), mapper),
    by("DM_DEV_CREATE", iowr(0xfd, 3, 312), mapper),
    by("DM_DEV_REMOVE", iowr(0xfd, 4, 312), mapper),
    by("DM_DEV_RENAME", iowr(0xfd, 5, 312), mapper),
    by("DM_DEV_SUSPEND", iowr(0xfd, 6, 312), mapper),
    by("DM_DEV_STATUS", iowr(0xfd, 7, 312), mapper),
    by("DM_DEV_WAIT", iowr(0xfd, 8, 312), mapper),
    by("DM_TABLE_LOAD", iowr(0xfd, 9, 312), mapper),
    by("DM_TABLE_CLEAR", iowr(0xfd, 10, 312), mapper),
    by("DM_TABLE_DEPS", iowr(0xfd, 11, 312), mapper),
    by("DM_TABLE_STATUS", iowr(0xfd, 12, 312), mapper),
    by("DM_LIST_VERSIONS", iowr(0xfd, 13, 312), mapper),
    by("DM_TARGET_MSG", iowr(0xfd, 14, 312), mapper),
];

fn mapper(visit: &mut Visit<'_>, name: Param, address: u64) {
    const HEAD: u64 = 16;
    visit.input(name, address, HEAD);
    let now = visit.u32_or_0(address.wrapping_add(12));
    let size = visit.keep(0, now);
    visit.whole(name, address, size);
}

pub(super) const SCSI_GENERIC: &[Request] = &[
    reads("SG_SET_TIMEOUT", 0x2201, 4),
    value("SG_GET_TIMEOUT", 0x2202),
    writes("SG_EMULATED_HOST", 0x2203, 4),
    writes("SG_GET_COMMAND_Q", 0x2270, 4),
    reads("SG_SET_COMMAND_Q", 0x2271, 4),
    writes("SG_GET_RESERVED_SIZE", 0x2272, 4),
    reads("SG_SET_RESERVED_SIZE", 0x2275, 4),
    writes("SG_GET_SCSI_ID", 0x2276, 32),
    reads("SG_SET_FORCE_LOW_DMA", 0x2279, 4),
    writes("SG_GET_LOW_DMA", 0x227a, 4),
    reads("SG_SET_FORCE_PACK_ID", 0x227b, 4),
    writes("SG_GET_PACK_ID", 0x227c, 4),
    writes("SG_GET_NUM_WAITING", 0x227d, 4),
    reads("SG_SET_DEBUG", 0x227e, 4),
    writes("SG_GET_SG_TABLESIZE", 0x227f, 4),
    writes("SG_GET_VERSION_NUM", 0x2282, 4),
    by("SG_IO", 0x2285, scsi),
];

/// `struct sg_io_hdr`: a command, data in one direction (perhaps as a vector), and what the device says of it.
fn scsi(visit: &mut Visit<'_>, name: Param, address: u64) {
    const HEADER: u64 = 88;
    const TO_DEVICE: u64 = -2_i32 as u32 as u64;
    const FROM_DEVICE: u64 = -3_i32 as u32 as u64;
    visit.input(name, address, 56);
    let at = |offset: u64| address.wrapping_add(offset);
    let mut lengths = [0; 2];
    if !visit.memory().read_bytes(at(8), &mut lengths) {
        return;
    }
    let [command_bytes, sense_bytes] = lengths.map(u64::from);
    let direction = visit.u32_or_0(at(4));
    let (vectors, size) = (visit.u16_at(at(10)).unwrap_or(0), visit.u32_or_0(at(12)));
    let (data, command, sense) = (visit.u64_or_0(at(16)), visit.u64_or_0(at(24)), visit.u64_or_0(at(32)));
    visit.input("ioctl(SG_IO)", command, command_bytes);
    match direction {
        TO_DEVICE if vectors > 0 => {
            iovecs(visit, "ioctl(SG_IO)", |_| "ioctl(SG_IO)".into(), (data, vectors), Moves::FromTarget);
        }
        TO_DEVICE => visit.input("ioctl(SG_IO)", data, size),
        FROM_DEVICE if vectors > 0 => {
            iovecs(visit, "ioctl(SG_IO)", |_| "ioctl(SG_IO)".into(), (data, vectors), Moves::ToTarget(size));
        }
        FROM_DEVICE => visit.whole("ioctl(SG_IO)", data, size),
        _ => {}
    }
    // The byte after the status tells how much of the sense buffer was written.
    let mut written = [0];
    if sense != 0 && (visit.is_before() || visit.memory().read_bytes(at(67), &mut written)) {
        visit.output("ioctl(SG_IO)", sense, sense_bytes, u64::from(written[0]));
    }
    if !visit.is_before() {
        visit.whole(name, at(64), HEADER - 64);
    }
}

pub(super) const SCSI: &[Request] = &[
    value("CDROMPAUSE", 0x5301),
    value("CDROMRESUME", 0x5302),
    reads("CDROMPLAYMSF", 0x5303, 6),
    reads("CDROMPLAYTRKIND", 0x5304, 4),
    writes("CDROMREADTOCHDR", 0x5305, 2),
    by("CDROMREADTOCENTRY", 0x5306, toc_entry),
    value("CDROMSTOP", 0x5307),
    value("CDROMSTART", 0x5308),
    value("CDROMEJECT", 0x5309),
    reads("CDROMVOLCTRL", 0x530a, 4),
    copies("CDROMSUBCHNL", 0x530b, 16),
    writes("CDROMREADMODE2", 0x530c, 2336),
    writes("CDROMREADMODE1", 0x530d, 2048),
    value("CDROMEJECT_SW", 0x530f),
    copies("CDROMMULTISESSION", 0x5310, 8),
    writes("CDROM_GET_MCN", 0x5311, 14),
    value("CDROMRESET", 0x5312),
    writes("CDROMVOLREAD", 0x5313, 4),
    writes("CDROMREADRAW", 0x5314, 2352),
    value("CDROM_SET_OPTIONS", 0x5320),
    value("CDROM_CLEAR_OPTIONS", 0x5321),
    value("CDROM_SELECT_SPEED", 0x5322),
    value("CDROM_SELECT_DISC", 0x5323),
    value("CDROM_MEDIA_CHANGED", 0x5325),
    value("CDROM_DRIVE_STATUS", 0x5326),
    value("CDROM_DISC_STATUS", 0x5327),
    value("CDROM_LOCKDOOR", 0x5329),
    value("CDROM_GET_CAPABILITY", 0x5331),
    writes("SCSI_IOCTL_GET_IDLUN", 0x5382, 8),
    writes("SCSI_IOCTL_GET_BUS_NUMBER", 0x5386, 4),
];

/// Track and format are read.
fn toc_entry(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input("ioctl(CDROMREADTOCENTRY (cdte_track, char))", address, 1);
    visit.input("ioctl(CDROMREADTOCENTRY (cdte_format, char))", address.wrapping_add(2), 1);
    visit.whole(name, address, 12);
}
