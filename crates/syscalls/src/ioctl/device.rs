//! Sound, input and USB devices.

use super::{Moves, Request, by, copies, io, ior, iow, iowr, request, value};
use crate::region::Param;
use crate::visit::Visit;

/// These say that they move an `int` to the kernel, and pass a number.
pub(super) const SOUND: &[Request] = &[
    value("SNDRV_PCM_IOCTL_PAUSE", iow(b'A', 0x45, 4)),
    value("SNDRV_PCM_IOCTL_LINK", iow(b'A', 0x60, 4)),
    copies("SNDRV_PCM_IOCTL_SYNC_PTR", iowr(b'A', 0x23, 136), 136),
];

/// The old sound interface writes the value back that it was asked for.
pub(super) const OLD_SOUND: &[Request] = &[
    value("SNDCTL_DSP_RESET", io(b'P', 0)),
    value("SNDCTL_DSP_SYNC", io(b'P', 1)),
    value("SNDCTL_DSP_POST", io(b'P', 8)),
    value("SNDCTL_DSP_NONBLOCK", io(b'P', 14)),
    super::both("SNDCTL_DSP_SPEED", iowr(b'P', 2, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOWR, int)"),
    super::both("SNDCTL_DSP_STEREO", iowr(b'P', 3, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOWR, int)"),
    super::both("SNDCTL_DSP_GETBLKSIZE", iowr(b'P', 4, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOR, int)"),
    super::both("SNDCTL_DSP_SETFMT", iowr(b'P', 5, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOWR, int)"),
    super::both("SNDCTL_DSP_CHANNELS", iowr(b'P', 6, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOWR, int)"),
    super::writes("SNDCTL_DSP_GETFMTS", ior(b'P', 11, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOR, int)"),
    super::writes("SNDCTL_DSP_GETOSPACE", ior(b'P', 12, 16), 16).shown("SNDCTL_XXX|SOUND_XXX (SIOR, audio_buf_info)"),
    super::writes("SNDCTL_DSP_GETISPACE", ior(b'P', 13, 16), 16).shown("SNDCTL_XXX|SOUND_XXX (SIOR, audio_buf_info)"),
    super::writes("SNDCTL_DSP_GETCAPS", ior(b'P', 15, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOR, int)"),
    super::reads("SNDCTL_DSP_SETTRIGGER", iow(b'P', 16, 4), 4).shown("SNDCTL_XXX|SOUND_XXX (SIOW, int)"),
];

pub(super) const INPUT: &[Request] = &[
    value("EVIOCGRAB", iow(b'E', 0x90, 4)),
    value("EVIOCREVOKE", iow(b'E', 0x91, 4)),
    value("EVIOCRMFF", iow(b'E', 0x81, 4)),
    // The number of the effect is written back.
    by("EVIOCSFF", iow(b'E', 0x80, 48), effect),
    by("EVIOCGKEYCODE", ior(b'E', 0x04, 8), key_code),
    by("EVIOCGMASK", ior(b'E', 0x92, 16), get_mask),
    by("EVIOCSMASK", iow(b'E', 0x93, 16), set_mask),
];

fn effect(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    visit.copied(name, address, 48);
    visit.whole(name, address.wrapping_add(2), 2);
}

fn key_code(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    visit.whole(name, address.wrapping_add(4), 4);
}

/// `struct input_mask`: a type, bytes of the codes, and where they are.
fn mask_codes(visit: &mut Visit<'_>, name: Param, address: u64) -> (u64, u64) {
    visit.input(name, address, 16);
    (visit.u64_or_0(address.wrapping_add(8)), visit.u32_or_0(address.wrapping_add(4)))
}

fn get_mask(visit: &mut Visit<'_>, name: Param, address: u64) {
    let (codes, size) = mask_codes(visit, name, address);
    visit.whole("ioctl(EVIOCGMASK).codes_ptr", codes, size);
}

fn set_mask(visit: &mut Visit<'_>, name: Param, address: u64) {
    let (codes, size) = mask_codes(visit, name, address);
    visit.input("ioctl(EVIOCSMASK).codes_ptr", codes, size);
}

/// Three kinds of device share a type: ALSA's controls, USB devices, and input devices made by programs, whose
/// numbers tell of an address where a value is passed.
pub(super) const USER: &[Request] = &[
    value("UI_DEV_CREATE", io(b'U', 1)),
    value("UI_DEV_DESTROY", io(b'U', 2)),
    value("UI_SET_EVBIT", iow(b'U', 100, 4)),
    value("UI_SET_KEYBIT", iow(b'U', 101, 4)),
    value("UI_SET_RELBIT", iow(b'U', 102, 4)),
    value("UI_SET_ABSBIT", iow(b'U', 103, 4)),
    value("UI_SET_MSCBIT", iow(b'U', 104, 4)),
    value("UI_SET_LEDBIT", iow(b'U', 105, 4)),
    value("UI_SET_SNDBIT", iow(b'U', 106, 4)),
    value("UI_SET_FFBIT", iow(b'U', 107, 4)),
    request("UI_SET_PHYS", iow(b'U', 108, 8), Moves::Text(1024)),
    value("UI_SET_SWBIT", iow(b'U', 109, 4)),
    value("UI_SET_PROPBIT", iow(b'U', 110, 4)),
    by("USBDEVFS_CONTROL", iowr(b'U', 0, 24), usb_control),
    by("USBDEVFS_BULK", iowr(b'U', 2, 24), usb_bulk),
    by("SNDRV_CTL_IOCTL_ELEM_LIST", iowr(b'U', 0x10, 80), element_list),
    by("SNDRV_CTL_IOCTL_TLV_READ", iowr(b'U', 0x1a, 8), read_tlv),
    by("SNDRV_CTL_IOCTL_TLV_WRITE", iowr(b'U', 0x1b, 8), write_tlv),
];

/// `struct usbdevfs_ctrltransfer`: the highest bit of the type says in which direction.
fn usb_control(visit: &mut Visit<'_>, _: Param, address: u64) {
    visit.input("ioctl(USBDEVFS_CONTROL).bRequestType", address, 12);
    visit.input("ioctl(USBDEVFS_CONTROL).data", address.wrapping_add(16), 8);
    let mut kind = [0];
    if !visit.memory().read_bytes(address, &mut kind) {
        return;
    }
    let size = visit.u16_at(address.wrapping_add(6)).unwrap_or(0);
    transfer(visit, "ioctl(USBDEVFS_CONTROL).data", address, size, kind[0] & 0x80 != 0);
}

/// `struct usbdevfs_bulktransfer`: the highest bit of the end point says in which direction.
fn usb_bulk(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 12);
    visit.input(name, address.wrapping_add(16), 8);
    let (end_point, size) = (visit.u32_or_0(address), visit.u32_or_0(address.wrapping_add(4)));
    transfer(visit, "ioctl(USBDEVFS_BULK).data", address, size, end_point & 0x80 != 0);
}

fn transfer(visit: &mut Visit<'_>, name: &'static str, address: u64, size: u64, is_in: bool) {
    let data = visit.u64_or_0(address.wrapping_add(16));
    if is_in {
        visit.output(name, data, size, visit.returned());
    } else {
        visit.input(name, data, size);
    }
}

/// `struct snd_ctl_elem_list`: where to begin, how many fit; how many were written, how many there are; where to.
fn element_list(visit: &mut Visit<'_>, name: Param, address: u64) {
    const ELEMENT: u64 = 64;
    visit.input(name, address, 8);
    visit.input(name, address.wrapping_add(16), 8);
    visit.whole(name, address.wrapping_add(8), 8);
    let (room, used) = (visit.u32_or_0(address.wrapping_add(4)), visit.u32_or_0(address.wrapping_add(8)));
    let elements = visit.u64_or_0(address.wrapping_add(16));
    visit.output("ioctl(SNDRV_CTL_IOCTL_ELEM_LIST).pids", elements, room * ELEMENT, used * ELEMENT);
}

/// `struct snd_ctl_tlv`: an element's number, bytes, the bytes.
fn read_tlv(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 8);
    let size = visit.u32_or_0(address.wrapping_add(4));
    visit.whole(name, address.wrapping_add(8), size);
}

fn write_tlv(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 8);
    let size = visit.u32_or_0(address.wrapping_add(4));
    visit.input(name, address.wrapping_add(8), size);
}
