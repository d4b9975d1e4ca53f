//! Frame buffers and the direct rendering manager. Most of its requests say in their number what they move; those here
//! name further memory.

use super::{Request, by, copies, iowr, reads, value, writes};
use crate::region::Param;
use crate::visit::Visit;

pub(super) const FRAME_BUFFER: &[Request] = &[
    writes("FBIOGET_VSCREENINFO", 0x4600, 160),
    copies("FBIOPUT_VSCREENINFO", 0x4601, 160),
    writes("FBIOGET_FSCREENINFO", 0x4602, 80),
    copies("FBIOPAN_DISPLAY", 0x4606, 160),
    value("FBIOBLANK", 0x4611),
    reads("FBIOPUT_CON2FBMAP", 0x4610, 8),
    copies("FBIOGET_CON2FBMAP", 0x460f, 8),
];

pub(super) const DRM: &[Request] = &[
    by("DRM_IOCTL_VERSION", iowr(b'd', 0x00, 64), version),
    by("DRM_IOCTL_GET_UNIQUE", iowr(b'd', 0x01, 16), unique),
    by("DRM_IOCTL_MODE_GETRESOURCES", iowr(b'd', 0xa0, 64), resources),
    by("DRM_IOCTL_MODE_GETPLANERESOURCES", iowr(b'd', 0xb5, 16), plane_resources),
    by("DRM_IOCTL_MODE_GETCONNECTOR", iowr(b'd', 0xa7, 80), connector),
    by("DRM_IOCTL_MODE_OBJ_GETPROPERTIES", iowr(b'd', 0xb9, 32), properties),
    by("DRM_IOCTL_MODE_GETPROPBLOB", iowr(b'd', 0xac, 16), blob),
];

/// A buffer that the structure names: where its length and its address stand, how large an element is. Nothing is
/// written if not all of it fits.
struct Buffer {
    name: &'static str,
    count_at: u64,
    address_at: u64,
    size: u64,
}

fn buffers(visit: &mut Visit<'_>, address: u64, is_word: bool, parts: &[Buffer]) {
    for (slot, part) in parts.iter().enumerate() {
        let count_at = address.wrapping_add(part.count_at);
        let now = if is_word { visit.u64_or_0(count_at) } else { visit.u32_or_0(count_at) };
        let room = visit.keep(slot, now);
        let at = visit.u64_or_0(address.wrapping_add(part.address_at));
        if at != 0 {
            let size = |count: u64| count.saturating_mul(part.size);
            visit.output(part.name, at, size(room), size(now));
        }
    }
}

/// `struct drm_version`: three numbers, then lengths and addresses of three names.
fn version(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part = |name, count_at| Buffer { name, count_at, address_at: count_at + 8, size: 1 };
    let parts =
        [part("ioctl(DRM_VERSION).name", 16), part("ioctl(DRM_VERSION).date", 32), part("ioctl(DRM_VERSION).desc", 48)];
    visit.input("ioctl(DRM_VERSION).name_len", address.wrapping_add(16), 48);
    visit.whole(name, address, 64);
    buffers(visit, address, true, &parts);
}

fn unique(visit: &mut Visit<'_>, _: Param, address: u64) {
    visit.inout("ioctl(DRM_GET_UNIQUE).unique_len", address, 16);
    let part = Buffer { name: "ioctl(DRM_GET_UNIQUE).unique", count_at: 0, address_at: 8, size: 1 };
    buffers(visit, address, true, &[part]);
}

/// `struct drm_mode_card_res`: four addresses, then four counts.
fn resources(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part = |address_at, count_at| Buffer {
        name: "ioctl(DRM_IOCTL_MODE_GETRESOURCES).id_ptr",
        count_at,
        address_at,
        size: 4,
    };
    visit.whole(name, address, 64);
    buffers(visit, address, false, &[part(0, 32), part(8, 36), part(16, 40), part(24, 44)]);
}

fn plane_resources(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part =
        Buffer { name: "ioctl(DRM_IOCTL_MODE_GETPLANERESOURCES).plane_id_ptr", count_at: 8, address_at: 0, size: 4 };
    visit.whole(name, address, 16);
    buffers(visit, address, false, &[part]);
}

/// `struct drm_mode_get_connector`: encoders, modes of 68 bytes, properties and their values.
fn connector(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part = |address_at, count_at, size| Buffer {
        name: "ioctl(DRM_IOCTL_MODE_GETCONNECTOR).ptr",
        count_at,
        address_at,
        size,
    };
    visit.whole(name, address, 80);
    buffers(visit, address, false, &[part(0, 40, 4), part(8, 32, 68), part(16, 36, 4), part(24, 36, 8)]);
}

fn properties(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part = |address_at, size| Buffer {
        name: "ioctl(DRM_IOCTL_MODE_OBJ_GETPROPERTIES).ptr",
        count_at: 16,
        address_at,
        size,
    };
    visit.whole(name, address, 32);
    buffers(visit, address, false, &[part(0, 4), part(8, 8)]);
}

fn blob(visit: &mut Visit<'_>, name: Param, address: u64) {
    let part = Buffer { name: "ioctl(DRM_IOCTL_MODE_GETPROPBLOB).data", count_at: 4, address_at: 8, size: 1 };
    visit.whole(name, address, 16);
    buffers(visit, address, false, &[part]);
}
