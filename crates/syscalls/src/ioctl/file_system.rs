//! Files and filesystems.

use super::{Moves, Request, both, by, ior, iow, iowr, reads, request, value, writes};
use crate::region::Param;
use crate::visit::Visit;

pub(super) const BMAP: &[Request] = &[both("FIBMAP", 1, 4), writes("FIGETBSZ", 2, 4)];

pub(super) const VERSION: &[Request] =
    // They say that they move a `long`, and move an `int`.
    &[writes("FS_IOC_GETVERSION", ior(b'v', 1, 8), 4), reads("FS_IOC_SETVERSION", iow(b'v', 2, 8), 4)];

pub(super) const FILE: &[Request] = &[
    writes("FS_IOC_GETFLAGS", ior(b'f', 1, 8), 4),
    reads("FS_IOC_SETFLAGS", iow(b'f', 2, 8), 4),
    by("FS_IOC_FIEMAP", iowr(b'f', 11, 32), extents),
    by("PAGEMAP_SCAN", iowr(b'f', 16, 96), page_map),
    by("PROCMAP_QUERY", iowr(b'f', 17, 104), map_query),
    by("FS_IOC_ENABLE_VERITY", iow(b'f', 133, 128), enable_verity),
    by("FS_IOC_MEASURE_VERITY", iowr(b'f', 134, 4), measure_verity),
];

/// `struct fiemap`: a range, flags, counts, then extents of 56 bytes.
fn extents(visit: &mut Visit<'_>, name: Param, address: u64) {
    const HEAD: u64 = 32;
    const EXTENT: u64 = 56;
    visit.input(name, address, 20);
    visit.input(name, address.wrapping_add(24), 4);
    let room = visit.u32_or_0(address.wrapping_add(24));
    let mapped = visit.u32_or_0(address.wrapping_add(20));
    visit.whole(name, address, HEAD);
    visit.output("ioctl(FS_IOC_FIEMAP).fm_extents", address.wrapping_add(HEAD), room * EXTENT, mapped * EXTENT);
}

/// `struct pm_scan_arg`: begins with its size; results of 24 bytes go to a vector.
fn page_map(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 96);
    let (vector, room) = (visit.u64_or_0(address.wrapping_add(40)), visit.u64_or_0(address.wrapping_add(48)));
    let (room, found) = (room.min(1 << 32) * 24, visit.returned() * 24);
    visit.output("ioctl(PAGEMAP_SCAN).vec", vector, room, found);
    // The end of the walk.
    visit.whole(name, address.wrapping_add(32), 8);
}

/// `struct procmap_query`: begins with its size; a name and a build id go to buffers of their own.
fn map_query(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 24);
    // The room for the name and the build id, and where they are.
    visit.input(name, address.wrapping_add(80), 24);
    let size = visit.u64_or_0(address).min(104);
    visit.whole(name, address, size);
    let word = |visit: &Visit<'_>, offset: u64| visit.u32_or_0(address.wrapping_add(offset));
    for (slot, size_at, at, part) in
        [(0, 80, 88, "ioctl(PROCMAP_QUERY).vma_name_addr"), (1, 84, 96, "ioctl(PROCMAP_QUERY).build_id_addr")]
    {
        let now = word(visit, size_at);
        let room = visit.keep(slot, now);
        let buffer = visit.u64_or_0(address.wrapping_add(at));
        if buffer != 0 {
            visit.output(part, buffer, room, now);
        }
    }
}

/// `struct fsverity_enable_arg`: a salt and a signature elsewhere.
fn enable_verity(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 128);
    let at = |offset: u64| address.wrapping_add(offset);
    visit.input("ioctl(FS_IOC_ENABLE_VERITY).salt_ptr", visit.u64_or_0(at(16)), visit.u32_or_0(at(12)));
    visit.input("ioctl(FS_IOC_ENABLE_VERITY).sig_ptr", visit.u64_or_0(at(32)), visit.u32_or_0(at(24)));
}

/// `struct fsverity_digest`: algorithm, room, the digest.
fn measure_verity(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address.wrapping_add(2), 2);
    let now = visit.u16_at(address.wrapping_add(2)).unwrap_or(0);
    let room = visit.keep(0, now);
    visit.whole(name, address, 4);
    visit.output(name, address.wrapping_add(4), room, now);
}

/// Freezing and thawing say that they move an `int`, and move nothing.
pub(super) const FREEZE: &[Request] = &[
    writes("FS_IOC_FSGETXATTR", ior(b'X', 31, 28), 28),
    reads("FS_IOC_FSSETXATTR", iow(b'X', 32, 28), 28),
    value("FIFREEZE", iowr(b'X', 119, 4)),
    value("FITHAW", iowr(b'X', 120, 4)),
    both("FITRIM", iowr(b'X', 121, 24), 24),
];

pub(super) const NAMES: &[Request] =
    &[writes("FS_IOC_GETFSUUID", ior(0x15, 0, 17), 17), writes("FS_IOC_GETFSSYSFSPATH", ior(0x15, 1, 129), 129)];

pub(super) const CLONE: &[Request] = &[
    value("FICLONE", iow(0x94, 9, 4)),
    reads("FICLONERANGE", iow(0x94, 13, 32), 32),
    by("FIDEDUPERANGE", iowr(0x94, 54, 24), dedupe),
    writes("FS_IOC_GETFSLABEL", ior(0x94, 49, 256), 256),
    request("FS_IOC_SETFSLABEL", iow(0x94, 50, 256), Moves::Text(256)),
];

/// `struct file_dedupe_range`: a source, how many destinations, and those, of 32 bytes.
fn dedupe(visit: &mut Visit<'_>, name: Param, address: u64) {
    const HEAD: u64 = 24;
    visit.input(name, address, HEAD);
    let count = visit.u16_at(address.wrapping_add(16)).unwrap_or(0);
    for index in 0..count {
        let at = address.wrapping_add(HEAD + index * 32);
        if !visit.step() {
            return;
        }
        visit.input("ioctl(FIDEDUPERANGE).info", at, 16);
        visit.whole("ioctl(FIDEDUPERANGE).info", at.wrapping_add(16), 12);
    }
}

pub(super) const FUSE: &[Request] = &[reads("FUSE_DEV_IOC_CLONE", ior(0xe5, 0, 4), 4)];
