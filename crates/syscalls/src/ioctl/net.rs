//! Sockets and network devices.

use super::{Moves, Request, by, copies, ior, reads, request, value, writes};
use crate::region::Param;
use crate::visit::Visit;

/// `struct ifreq`: a name of 16 bytes, and a union.
const IFREQ: u64 = 40;
const NAME: u64 = 16;
/// `struct arpreq`, `struct rtentry`.
const ARPREQ: u32 = 68;
const RTENTRY: u32 = 120;

pub(super) const SOCKET: &[Request] = &[
    reads("FIOSETOWN", 0x8901, 4),
    reads("SIOCSPGRP", 0x8902, 4),
    writes("FIOGETOWN", 0x8903, 4),
    writes("SIOCGPGRP", 0x8904, 4),
    writes("SIOCATMARK", 0x8905, 4),
    writes("SIOCGSTAMP_OLD", 0x8906, 16).shown("SIOCGSTAMP"),
    writes("SIOCGSTAMPNS_OLD", 0x8907, 16).shown("SIOCGSTAMPNS"),
    writes("SIOCGSTAMP_NEW", ior(0x89, 6, 16), 16).shown("SIOCGSTAMP"),
    writes("SIOCGSTAMPNS_NEW", ior(0x89, 7, 16), 16).shown("SIOCGSTAMPNS"),
    reads("SIOCADDRT", 0x890b, RTENTRY).shown("SIOCADDRT/DELRT"),
    reads("SIOCDELRT", 0x890c, RTENTRY).shown("SIOCADDRT/DELRT"),
    by("SIOCGIFNAME", 0x8910, name_of_index),
    value("SIOCSIFLINK", 0x8911),
    by("SIOCGIFCONF", 0x8912, list),
    by("SIOCGIFFLAGS", 0x8913, get),
    by("SIOCSIFFLAGS", 0x8914, set),
    by("SIOCGIFADDR", 0x8915, get),
    by("SIOCSIFADDR", 0x8916, set).shown("SIOCSIF*ADDR"),
    by("SIOCGIFDSTADDR", 0x8917, get),
    by("SIOCSIFDSTADDR", 0x8918, set).shown("SIOCSIF*ADDR"),
    by("SIOCGIFBRDADDR", 0x8919, get),
    by("SIOCSIFBRDADDR", 0x891a, set).shown("SIOCSIF*ADDR"),
    by("SIOCGIFNETMASK", 0x891b, get),
    by("SIOCSIFNETMASK", 0x891c, set).shown("SIOCSIF*ADDR"),
    by("SIOCGIFMETRIC", 0x891d, get),
    by("SIOCSIFMETRIC", 0x891e, set),
    by("SIOCGIFMTU", 0x8921, get),
    by("SIOCSIFMTU", 0x8922, set),
    by("SIOCSIFNAME", 0x8923, set_name),
    by("SIOCSIFHWADDR", 0x8924, set),
    by("SIOCGIFHWADDR", 0x8927, get),
    by("SIOCGIFSLAVE", 0x8929, get),
    by("SIOCSIFSLAVE", 0x8930, set),
    by("SIOCADDMULTI", 0x8931, set),
    by("SIOCDELMULTI", 0x8932, set),
    by("SIOCGIFINDEX", 0x8933, get),
    by("SIOCSIFPFLAGS", 0x8934, set),
    by("SIOCGIFPFLAGS", 0x8935, get),
    reads("SIOCDIFADDR", 0x8936, 40),
    by("SIOCSIFHWBROADCAST", 0x8937, set),
    by("SIOCGIFTXQLEN", 0x8942, get),
    by("SIOCSIFTXQLEN", 0x8943, set),
    by("SIOCETHTOOL", 0x8946, ethtool),
    by("SIOCGMIIPHY", 0x8947, get).shown("SIOCGIFMIIPHY"),
    by("SIOCGMIIREG", 0x8948, get).shown("SIOCGIFMIIREG"),
    by("SIOCSMIIREG", 0x8949, set),
    writes("SIOCOUTQNSD", 0x894b, 4),
    value("SIOCGSKNS", 0x894c),
    reads("SIOCDARP", 0x8953, ARPREQ).shown("SIOCSIFFLAGS"),
    request("SIOCGARP", 0x8954, Moves::CopyOut(ARPREQ)),
    reads("SIOCSARP", 0x8955, ARPREQ).shown("SIOCSIFFLAGS"),
    reads("SIOCDRARP", 0x8960, ARPREQ).shown("SIOCSIFFLAGS"),
    copies("SIOCGRARP", 0x8961, ARPREQ).shown("SIOCGARP"),
    reads("SIOCSRARP", 0x8962, ARPREQ).shown("SIOCSIFFLAGS"),
    by("SIOCGIFMAP", 0x8970, get),
    by("SIOCSIFMAP", 0x8971, set),
    copies("SIOCGIFVLAN", 0x8982, 56),
    copies("SIOCSIFVLAN", 0x8983, 56),
    by("SIOCBONDENSLAVE", 0x8990, set),
    by("SIOCBONDRELEASE", 0x8991, set),
    request("SIOCBRADDBR", 0x89a0, Moves::Text(16)),
    request("SIOCBRDELBR", 0x89a1, Moves::Text(16)),
    by("SIOCBRADDIF", 0x89a2, set),
    by("SIOCBRDELIF", 0x89a3, set),
    by("SIOCSHWTSTAMP", 0x89b0, time_stamps),
    by("SIOCGHWTSTAMP", 0x89b1, time_stamps),
];

/// The kernel copies all of an `ifreq` and copies it back; it looks at the name.
fn get(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.text(name, address, NAME);
    visit.whole(name, address, IFREQ);
}

/// The name, and as much of the union as the smallest of the values takes: what is in the rest depends on the request.
fn set(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.text(name, address, NAME);
    visit.input(name, address.wrapping_add(NAME), 2);
    visit.copied(name, address, IFREQ);
}

fn set_name(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.text(name, address, NAME);
    visit.text(name, address.wrapping_add(NAME), NAME);
    visit.copied(name, address, IFREQ);
}

fn name_of_index(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address.wrapping_add(NAME), 4);
    visit.whole(name, address, IFREQ);
}

/// `struct ifconf`: bytes of the buffer, and where it is; null asks for the bytes alone.
fn list(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    visit.input(name, address.wrapping_add(8), 8);
    let now = visit.u32_or_0(address);
    let room = visit.keep(0, now);
    let buffer = visit.u64_or_0(address.wrapping_add(8));
    if buffer != 0 && room as i32 > 0 {
        visit.output("ioctl(SIOCGIFCONF).ifc_buf", buffer, room, now);
    }
    if !visit.is_before() {
        visit.whole(name, address, 4);
    }
}

/// `struct hwtstamp_config`, behind the pointer in the union.
fn time_stamps(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.text(name, address, NAME);
    visit.input(name, address.wrapping_add(NAME), 8);
    let config = visit.u64_or_0(address.wrapping_add(NAME));
    visit.whole(name, config, 12);
}

/// The union holds the address of a command and its data. Most data are as long as the command's structure.
fn ethtool(visit: &mut Visit<'_>, _: Param, address: u64) {
    const TEXT_LENGTH: u64 = 32;
    visit.input("ioctl(SIOCETHTOOL,ir)", address.wrapping_add(NAME), 8);
    visit.text("ioctl(SIOCETHTOOL,ir)", address, NAME);
    visit.whole("ioctl(SIOCETHTOOL,ir)", address, IFREQ);
    let data = visit.u64_or_0(address.wrapping_add(NAME));
    visit.input("ioctl(SIOCETHTOOL,ir)", data, 4);
    let Some(command) = visit.u32_at(data) else { return };
    let (name, size, is_get): (&'static str, u64, bool) = match command {
        0x01 => ("ioctl(SIOCETHTOOL,GSET)", 44, true),
        0x02 => ("ioctl(SIOCETHTOOL,SSET)", 44, false),
        0x03 => ("ioctl(SIOCETHTOOL,GDRVINFO)", 196, true),
        0x05 => ("ioctl(SIOCETHTOOL,GWOL)", 20, true),
        0x06 => ("ioctl(SIOCETHTOOL,SWOL)", 20, false),
        // Links, checksums, offloads: one number each.
        0x07 | 0x0a | 0x14 | 0x16 | 0x18 | 0x1e | 0x21 | 0x23 | 0x25 | 0x27 | 0x2b => {
            ("ioctl(SIOCETHTOOL,Gvalue)", 8, true)
        }
        0x08 | 0x15 | 0x17 | 0x19 | 0x1f | 0x22 | 0x24 | 0x26 | 0x28 | 0x2c => ("ioctl(SIOCETHTOOL,Svalue)", 8, false),
        0x0e => ("ioctl(SIOCETHTOOL,GCOALESCE)", 92, true),
        0x0f => ("ioctl(SIOCETHTOOL,SCOALESCE)", 92, false),
        0x10 => ("ioctl(SIOCETHTOOL,GRINGPARAM)", 36, true),
        0x11 => ("ioctl(SIOCETHTOOL,SRINGPARAM)", 36, false),
        0x12 => ("ioctl(SIOCETHTOOL,GPAUSEPARAM)", 16, true),
        0x13 => ("ioctl(SIOCETHTOOL,SPAUSEPARAM)", 16, false),
        0x3c => ("ioctl(SIOCETHTOOL,GCHANNELS)", 36, true),
        0x3d => ("ioctl(SIOCETHTOOL,SCHANNELS)", 36, false),
        0x41 => ("ioctl(SIOCETHTOOL,GET_TS_INFO)", 44, true),
        // Counted data: registers, strings, statistics, addresses.
        0x04 => return counted(visit, "ioctl(SIOCETHTOOL,GREGS)", data, (8, 12, 1)),
        0x1b => return counted(visit, "ioctl(SIOCETHTOOL,GSTRINGS)", data, (8, 12, TEXT_LENGTH)),
        0x1d => return counted(visit, "ioctl(SIOCETHTOOL,GSTATS)", data, (4, 8, 8)),
        0x20 => return counted(visit, "ioctl(SIOCETHTOOL,GPERMADDR)", data, (4, 8, 1)),
        _ => return,
    };
    if is_get {
        visit.whole(name, data, size);
    } else {
        visit.input(name, data, size);
    }
}

/// A count at one offset, the elements of a size at another; the kernel corrects the count.
fn counted(visit: &mut Visit<'_>, name: &'static str, data: u64, (count_at, elements_at, size): (u64, u64, u64)) {
    visit.input(name, data.wrapping_add(count_at), 4);
    let now = visit.u32_or_0(data.wrapping_add(count_at));
    let room = visit.keep(0, now);
    visit.output(name, data.wrapping_add(elements_at), room * size, now.min(room) * size);
    if !visit.is_before() {
        visit.whole(name, data, elements_at);
    }
}
