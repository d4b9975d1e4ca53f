//! Terminals, virtual consoles, and what shares their type: tun devices, ALSA timers.

use super::{Request, both, by, copies, ior, iow, iowr, reads, value, writes};
use crate::region::Param;
use crate::visit::Visit;

/// The kernel's `struct termios`, `struct termios2`, `struct termio`; `struct ifreq`, `struct serial_struct`.
const TERMIOS: u32 = 36;
const TERMIOS2: u32 = 44;
const TERMIO: u32 = 18;
const SERIAL: u32 = 72;

pub(super) const TERMINAL: &[Request] = &[
    writes("TCGETS", 0x5401, TERMIOS),
    reads("TCSETS", 0x5402, TERMIOS).shown("TCSET{S,SW,SF}"),
    reads("TCSETSW", 0x5403, TERMIOS).shown("TCSET{S,SW,SF}"),
    reads("TCSETSF", 0x5404, TERMIOS).shown("TCSET{S,SW,SF}"),
    writes("TCGETA", 0x5405, TERMIO),
    reads("TCSETA", 0x5406, TERMIO).shown("TCSET{A,AW,AF}"),
    reads("TCSETAW", 0x5407, TERMIO).shown("TCSET{A,AW,AF}"),
    reads("TCSETAF", 0x5408, TERMIO).shown("TCSET{A,AW,AF}"),
    value("TCSBRK", 0x5409),
    value("TCXONC", 0x540a),
    value("TCFLSH", 0x540b),
    value("TIOCEXCL", 0x540c),
    value("TIOCNXCL", 0x540d),
    value("TIOCSCTTY", 0x540e),
    writes("TIOCGPGRP", 0x540f, 4),
    reads("TIOCSPGRP", 0x5410, 4).shown("TIOCGPGRP"),
    writes("TIOCOUTQ", 0x5411, 4).shown("SIOCOUTQ"),
    reads("TIOCSTI", 0x5412, 1),
    writes("TIOCGWINSZ", 0x5413, 8),
    reads("TIOCSWINSZ", 0x5414, 8),
    writes("TIOCMGET", 0x5415, 4),
    reads("TIOCMBIS", 0x5416, 4),
    reads("TIOCMBIC", 0x5417, 4),
    reads("TIOCMSET", 0x5418, 4),
    writes("TIOCGSOFTCAR", 0x5419, 4),
    reads("TIOCSSOFTCAR", 0x541a, 4),
    writes("FIONREAD", 0x541b, 4),
    by("TIOCLINUX", 0x541c, console),
    value("TIOCCONS", 0x541d),
    writes("TIOCGSERIAL", 0x541e, SERIAL).shown("VKI_TIOCGSERIAL"),
    reads("TIOCSSERIAL", 0x541f, SERIAL).shown("VKI_TIOCSSERIAL"),
    reads("TIOCPKT", 0x5420, 4),
    reads("FIONBIO", 0x5421, 4),
    value("TIOCNOTTY", 0x5422),
    reads("TIOCSETD", 0x5423, 4),
    writes("TIOCGETD", 0x5424, 4),
    value("TCSBRKP", 0x5425),
    value("TIOCSBRK", 0x5427),
    value("TIOCCBRK", 0x5428),
    writes("TIOCGSID", 0x5429, 4),
    writes("TCGETS2", ior(b'T', 0x2a, TERMIOS2), TERMIOS2),
    reads("TCSETS2", iow(b'T', 0x2b, TERMIOS2), TERMIOS2),
    reads("TCSETSW2", iow(b'T', 0x2c, TERMIOS2), TERMIOS2),
    reads("TCSETSF2", iow(b'T', 0x2d, TERMIOS2), TERMIOS2),
    writes("TIOCGRS485", 0x542e, 32),
    both("TIOCSRS485", 0x542f, 32),
    writes("TIOCGPTN", ior(b'T', 0x30, 4), 4),
    reads("TIOCSPTLCK", iow(b'T', 0x31, 4), 4),
    writes("TIOCGDEV", ior(b'T', 0x32, 4), 4),
    value("TIOCSIG", iow(b'T', 0x36, 4)),
    value("TIOCVHANGUP", 0x5437),
    writes("TIOCGPKT", ior(b'T', 0x38, 4), 4),
    writes("TIOCGPTLCK", ior(b'T', 0x39, 4), 4),
    writes("TIOCGEXCL", ior(b'T', 0x40, 4), 4),
    value("TIOCGPTPEER", 0x5441),
    writes("TIOCGISO7816", ior(b'T', 0x42, 40), 40),
    both("TIOCSISO7816", iowr(b'T', 0x43, 40), 40),
    value("FIONCLEX", 0x5450),
    value("FIOCLEX", 0x5451),
    reads("FIOASYNC", 0x5452, 4),
    value("TIOCSERCONFIG", 0x5453),
    writes("TIOCSERGWILD", 0x5454, 4),
    reads("TIOCSERSWILD", 0x5455, 4),
    writes("TIOCGLCKTRMIOS", 0x5456, TERMIOS),
    reads("TIOCSLCKTRMIOS", 0x5457, TERMIOS),
    writes("TIOCSERGETLSR", 0x5459, 4),
    value("TIOCMIWAIT", 0x545c),
    writes("TIOCGICOUNT", 0x545d, 80),
    writes("FIOQSIZE", 0x5460, 8),
    // Tun devices: several numbers tell of an address where a value is passed, or of other sizes.
    value("TUNSETNOCSUM", iow(b'T', 200, 4)),
    value("TUNSETDEBUG", iow(b'T', 201, 4)),
    by("TUNSETIFF", iow(b'T', 202, 4), tun_interface),
    value("TUNSETPERSIST", iow(b'T', 203, 4)),
    value("TUNSETOWNER", iow(b'T', 204, 4)),
    value("TUNSETLINK", iow(b'T', 205, 4)),
    value("TUNSETGROUP", iow(b'T', 206, 4)),
    writes("TUNGETFEATURES", ior(b'T', 207, 4), 4),
    value("TUNSETOFFLOAD", iow(b'T', 208, 4)),
    by("TUNSETTXFILTER", iow(b'T', 209, 4), tun_filter),
    copies("TUNGETIFF", ior(b'T', 210, 4), 40),
    writes("TUNGETSNDBUF", ior(b'T', 211, 4), 4),
    reads("TUNSETSNDBUF", iow(b'T', 212, 4), 4),
    reads("TUNATTACHFILTER", iow(b'T', 213, 16), 16),
    reads("TUNDETACHFILTER", iow(b'T', 214, 16), 16),
    writes("TUNGETVNETHDRSZ", ior(b'T', 215, 4), 4),
    reads("TUNSETVNETHDRSZ", iow(b'T', 216, 4), 4),
    reads("TUNSETQUEUE", iow(b'T', 217, 4), 40),
    reads("TUNSETIFINDEX", iow(b'T', 218, 4), 4),
    reads("TUNSETSTEERINGEBPF", ior(b'T', 224, 4), 4),
    reads("TUNSETFILTEREBPF", ior(b'T', 225, 4), 4),
];

/// A subcommand in the first byte; those that take more have it behind it, and some write their answer there.
fn console(visit: &mut Visit<'_>, name: Param, address: u64) {
    const SET_SELECTION: u8 = 2;
    visit.input(name, address, 1);
    let mut command = [0];
    if !visit.memory().read_bytes(address, &mut command) {
        return;
    }
    match command[0] {
        SET_SELECTION => visit.input(name, address.wrapping_add(1), 10),
        // The state of the shift keys, the mask of log levels.
        6 | 7 if !visit.is_before() => visit.whole(name, address, 1),
        10 | 14 => visit.input(name, address.wrapping_add(1), 1),
        11 => visit.input("ioctl(TIOCLINUX, 11)", address, 2),
        _ => {}
    }
}

/// The name (perhaps a pattern) and the flags are read; the name that was chosen is written.
fn tun_interface(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.text(name, address, 16);
    visit.input(name, address.wrapping_add(16), 2);
    visit.whole(name, address, 40);
}

/// `struct tun_filter`: flags, how many addresses of 6 bytes, the addresses.
fn tun_filter(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    let count = visit.u16_at(address.wrapping_add(2)).unwrap_or(0);
    visit.input(name, address.wrapping_add(4), count * 6);
}

pub(super) const KEYBOARD: &[Request] = &[
    value("KIOCSOUND", 0x4b2f),
    value("KDMKTONE", 0x4b30),
    writes("KDGETLED", 0x4b31, 1),
    value("KDSETLED", 0x4b32),
    writes("KDGKBTYPE", 0x4b33, 1),
    value("KDADDIO", 0x4b34),
    value("KDDELIO", 0x4b35),
    value("KDENABIO", 0x4b36),
    value("KDDISABIO", 0x4b37),
    value("KDSETMODE", 0x4b3a),
    writes("KDGETMODE", 0x4b3b, 4),
    value("KDMAPDISP", 0x4b3c),
    value("KDUNMAPDISP", 0x4b3d),
    writes("GIO_SCRNMAP", 0x4b40, 256),
    reads("PIO_SCRNMAP", 0x4b41, 256),
    writes("KDGKBMODE", 0x4b44, 4),
    value("KDSKBMODE", 0x4b45),
    by("KDGKBENT", 0x4b46, key_entry),
    reads("KDSKBENT", 0x4b47, 4),
    by("KDGKBSENT", 0x4b48, key_string),
    by("KDSKBSENT", 0x4b49, set_key_string),
    writes("KDGKBDIACR", 0x4b4a, 4 + 256 * 3),
    reads("KDSKBDIACR", 0x4b4b, 4 + 256 * 3),
    by("KDGETKEYCODE", 0x4b4c, key_code),
    reads("KDSETKEYCODE", 0x4b4d, 8),
    value("KDSIGACCEPT", 0x4b4e),
    both("KDKBDREP", 0x4b52, 8),
    writes("GIO_FONT", 0x4b60, 8192),
    reads("PIO_FONT", 0x4b61, 8192),
    writes("KDGKBMETA", 0x4b62, 4),
    value("KDSKBMETA", 0x4b63),
    writes("KDGKBLED", 0x4b64, 1),
    value("KDSKBLED", 0x4b65),
    by("GIO_UNIMAP", 0x4b66, unicode_map),
    by("PIO_UNIMAP", 0x4b67, set_unicode_map),
    reads("PIO_UNIMAPCLR", 0x4b68, 6),
    writes("GIO_UNISCRNMAP", 0x4b69, 512),
    reads("PIO_UNISCRNMAP", 0x4b6a, 512),
    value("PIO_FONTRESET", 0x4b6d),
    writes("GIO_CMAP", 0x4b70, 48),
    reads("PIO_CMAP", 0x4b71, 48),
    by("KDFONTOP", 0x4b72, font),
    writes("KDGKBDIACRUC", 0x4bfa, 4 + 256 * 12),
    reads("KDSKBDIACRUC", 0x4bfb, 4 + 256 * 12),
];

/// Table and key are read, the value is written.
fn key_entry(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 2);
    visit.whole(name, address.wrapping_add(2), 2);
}

fn key_string(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 1);
    visit.output_text(name, address.wrapping_add(1), 512, 512);
}

fn set_key_string(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 1);
    visit.text(name, address.wrapping_add(1), 512);
}

fn key_code(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    visit.whole(name, address.wrapping_add(4), 4);
}

/// `struct unimapdesc`: how many pairs of 4 bytes, and where.
fn unicode_map(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 2);
    visit.input(name, address.wrapping_add(8), 8);
    let now = visit.u16_at(address).unwrap_or(0);
    let room = visit.keep(0, now);
    let entries = visit.u64_or_0(address.wrapping_add(8));
    visit.output("ioctl(GIO_UNIMAP).entries", entries, room * 4, now * 4);
    visit.whole(name, address, 2);
}

fn set_unicode_map(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 2);
    visit.input(name, address.wrapping_add(8), 8);
    let count = visit.u16_at(address).unwrap_or(0);
    visit.input("ioctl(PIO_UNIMAP).entries", visit.u64_or_0(address.wrapping_add(8)), count * 4);
}

/// `struct console_font_op`: operation, flags, width, height, how many glyphs, the data.
fn font(visit: &mut Visit<'_>, name: Param, address: u64) {
    const OP_SET: u64 = 0;
    const OP_GET: u64 = 1;
    const OP_SET_DEFAULT: u64 = 2;
    visit.input(name, address, 32);
    let data = visit.u64_or_0(address.wrapping_add(24));
    let (width, count) = (visit.u32_or_0(address.wrapping_add(8)), visit.u32_or_0(address.wrapping_add(16)));
    let size = width.min(64).div_ceil(8) * 32 * count.min(512);
    match visit.u32_at(address) {
        Some(OP_SET) => visit.input("ioctl(KDFONTOP,KD_FONT_OP_SET).data", data, size),
        Some(OP_GET) if data != 0 => visit.whole("ioctl(KDFONTOP,KD_FONT_OP_GET).data", data, size),
        Some(OP_SET_DEFAULT) if data != 0 => visit.text("ioctl(KDFONTOP,KD_FONT_OP_SET_DEFAULT).data", data, 32),
        _ => {}
    }
    if !visit.is_before() {
        visit.whole(name, address, 32);
    }
}

/// The active console, a signal that is left alone, and the mask of those in use.
fn console_state(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.whole(name, address, 2);
    visit.whole(name, address.wrapping_add(4), 2);
}

pub(super) const VIRTUAL: &[Request] = &[
    writes("VT_OPENQRY", 0x5600, 4),
    writes("VT_GETMODE", 0x5601, 8),
    reads("VT_SETMODE", 0x5602, 8),
    by("VT_GETSTATE", 0x5603, console_state),
    value("VT_SENDSIG", 0x5604),
    value("VT_RELDISP", 0x5605),
    value("VT_ACTIVATE", 0x5606),
    value("VT_WAITACTIVE", 0x5607),
    value("VT_DISALLOCATE", 0x5608),
    reads("VT_RESIZE", 0x5609, 6),
    reads("VT_RESIZEX", 0x560a, 12),
    value("VT_LOCKSWITCH", 0x560b),
    value("VT_UNLOCKSWITCH", 0x560c),
    writes("VT_GETHIFONTMASK", 0x560d, 2),
    copies("VT_WAITEVENT", 0x560e, 28),
    reads("VT_SETACTIVATE", 0x560f, 12),
];
