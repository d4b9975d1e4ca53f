//! The kernel's key rings.

use crate::rule::{by, count_of, input, text_of};
use crate::shape::{Moves, iovecs};
use crate::table::syscalls;
use crate::visit::Visit;

/// A key's type is cut at 32 bytes, its description at a page.
const TYPE: u32 = 32;
const DESCRIPTION: u32 = 4096;

syscalls! {
    /// Key rings.
    KEYS:
    248 add_key(r#type: ptr, description: ptr, payload: ptr, plen: ulong, keyring: int)
        [text_of(r#type, TYPE), text_of(description, DESCRIPTION).or_null(),
         input(payload, count_of(plen)).or_null().called("request_key(payload)")];
    249 request_key(r#type: ptr, description: ptr, callout_info: ptr, keyring: int)
        [text_of(r#type, TYPE), text_of(description, DESCRIPTION), text_of(callout_info, DESCRIPTION).or_null()]
        is BLOCKS;
    250 keyctl(option: int, arg2: ulong, arg3: ulong, arg4: ulong, arg5: ulong) [by(keyctl)] registers keyctl_registers
        names keyctl_names is BLOCKS;
}

/// How many arguments each option takes beside itself.
fn keyctl_registers(args: &[u64; 6]) -> u8 {
    match args[0] as u32 {
        18 => 0b0_0001,
        1 | 3 | 7 | 14 | 16 | 21 => 0b0_0011,
        0 | 5 | 8 | 9 | 15 | 22 | 31 => 0b0_0111,
        2 | 4 | 6 | 11 | 13 | 17 | 29 | 32 => 0b0_1111,
        _ => 0b1_1111,
    }
}

/// Memcheck's names of the arguments of one option.
macro_rules! keyctl_names {
    ($option:literal, $($name:literal),*) => {
        &[$(concat!("keyctl(KEYCTL_", $option, ")(", $name, ")")),*]
    };
}

/// By option, from 0 on; the later ones Memcheck does not know.
const NAMES: &[&[&str]] = &[
    keyctl_names!("GET_KEYRING_ID", "option", "id", "create"),
    keyctl_names!("JOIN_SESSION_KEYRING", "option", "name"),
    keyctl_names!("UPDATE", "option", "key", "payload", "plen"),
    keyctl_names!("REVOKE", "option", "id"),
    keyctl_names!("CHOWN", "option", "id", "uid", "gid"),
    keyctl_names!("SETPERM", "option", "id", "perm"),
    keyctl_names!("DESCRIBE", "option", "id", "buffer", "buflen"),
    keyctl_names!("CLEAR", "option", "keyring"),
    keyctl_names!("LINK", "option", "keyring", "key"),
    keyctl_names!("UNLINK", "option", "keyring", "key"),
    keyctl_names!("SEARCH", "option", "keyring", "type", "description", "destring"),
    keyctl_names!("READ", "option", "keyring", "buffer", "buflen"),
    keyctl_names!("INSTANTIATE", "option", "key", "payload", "plen", "keyring"),
    keyctl_names!("NEGATE", "option", "key", "timeout", "keyring"),
    keyctl_names!("SET_REQKEY_KEYRING", "option", "reqkey_defl"),
    keyctl_names!("SET_TIMEOUT", "option", "key", "timeout"),
    keyctl_names!("ASSUME_AUTHORITY", "option", "key"),
];

fn keyctl_names(args: &[u64; 6], index: usize) -> &'static str {
    NAMES.get(args[0] as u32 as usize).and_then(|names| names.get(index)).copied().unwrap_or("")
}

fn keyctl(visit: &mut Visit<'_>) {
    let [a2, a3, a4, a5] = [1, 2, 3, 4].map(|index| visit.arg(index));
    let returned = visit.returned();
    // What does not fit is not written at all.
    let fits = |room: u64| if returned <= room { returned } else { 0 };
    match visit.int(0) {
        1 if a2 != 0 => visit.text("keyctl(KEYCTL_JOIN_SESSION_KEYRING, name)", a2, 4096),
        2 if a3 != 0 => visit.input("keyctl(KEYCTL_UPDATE, payload)", a3, a4),
        6 if a3 != 0 => visit.output("keyctl(KEYCTL_DESCRIBE, buffer)", a3, a4, fits(a4)),
        10 => {
            visit.text("sys_keyctl(KEYCTL_SEARCH, type)", a3, u64::from(TYPE));
            visit.text("sys_keyctl(KEYCTL_SEARCH, description)", a4, u64::from(DESCRIPTION));
        }
        11 if a3 != 0 => visit.output("keyctl(KEYCTL_READ, buffer)", a3, a4, fits(a4)),
        12 if a3 != 0 => visit.input("keyctl(KEYCTL_INSTANTIATE, payload)", a3, a4),
        17 if a3 != 0 => visit.output("keyctl(KEYCTL_GET_SECURITY, buffer)", a3, a4, returned),
        20 if a3 != 0 => iovecs(
            visit,
            "keyctl(KEYCTL_INSTANTIATE_IOV, payload_iov)",
            |_| "keyctl(KEYCTL_INSTANTIATE_IOV, payload_iov[...])".into(),
            (a3, a4),
            Moves::FromTarget,
        ),
        23 => {
            visit.input("keyctl(KEYCTL_DH_COMPUTE, params)", a2, 12);
            visit.output("keyctl(KEYCTL_DH_COMPUTE, buffer)", a3, a4, fits(a4));
        }
        24 => {
            if a4 != 0 {
                visit.text("keyctl(KEYCTL_PKEY_QUERY, info)", a4, 4096);
            }
            visit.whole("keyctl(KEYCTL_PKEY_QUERY, result)", a5, 56);
        }
        25..=28 => public_key(visit, a2, a3, a4, a5),
        29 if a3 != 0 => {
            visit.text("keyctl(KEYCTL_RESTRICT_KEYRING, type)", a3, u64::from(TYPE));
            if a4 != 0 {
                visit.text("keyctl(KEYCTL_RESTRICT_KEYRING, restriction)", a4, 4096);
            }
        }
        31 => visit.whole("keyctl(KEYCTL_CAPABILITIES, buffer)", a2, a3),
        _ => {}
    }
}

/// Encrypt, decrypt, sign: from one buffer into another. Verify: both are read.
fn public_key(visit: &mut Visit<'_>, params: u64, info: u64, from: u64, to: u64) {
    visit.input("keyctl(KEYCTL_PKEY, params)", params, 40);
    if info != 0 {
        visit.text("keyctl(KEYCTL_PKEY, info)", info, 4096);
    }
    let (in_length, out_length) = (visit.u32_or_0(params.wrapping_add(4)), visit.u32_or_0(params.wrapping_add(8)));
    visit.input("keyctl(KEYCTL_PKEY, in)", from, in_length);
    if visit.int(0) == 28 {
        visit.input("keyctl(KEYCTL_PKEY_VERIFY, in2)", to, out_length);
    } else {
        visit.output("keyctl(KEYCTL_PKEY, out)", to, out_length, visit.returned());
    }
}
