//! `bpf`, by its command. The kernel insists that what a command does not use of the attributes is zero, so all of
//! them must be defined. Layout: `union bpf_attr` in `linux/bpf.h`.

use crate::visit::Visit;

/// `sizeof(union bpf_attr)` of 6.18, and more than any kernel's.
const MOST_ATTRIBUTES: u64 = 4096;

pub(crate) fn bpf(visit: &mut Visit<'_>) {
    let (attr, size) = (visit.arg(1), visit.count(2));
    if size > MOST_ATTRIBUTES {
        return;
    }
    visit.input("bpf(attr)", attr, size);
    match visit.int(0) {
        1 | 21 => element(visit, attr, true),
        2 => element(visit, attr, false),
        3 => key(visit, attr),
        4 => next_key(visit, attr),
        5 => load_program(visit, attr),
        6 | 7 => visit.text("bpf(attr->pathname)", visit.u64_or_0(attr), 4096),
        10 => test_run(visit, attr),
        // The next number of a program, map, type description, link.
        11 | 12 | 23 | 31 => visit.whole("bpf(attr->next_id)", attr.wrapping_add(4), 4),
        15 => info(visit, attr),
        16 => query(visit, attr),
        17 => {
            let name = visit.u64_or_0(attr);
            if name != 0 {
                visit.text("bpf(attr->raw_tracepoint.name)", name, 128);
            }
        }
        18 => load_types(visit, attr),
        20 => task_query(visit, attr),
        24..=27 => batch(visit, attr),
        _ => {}
    }
}

/// A field of the attributes; what lies beyond their size is zero.
fn word(visit: &Visit<'_>, attr: u64, offset: u64) -> u64 {
    if offset + 8 > visit.count(2) { 0 } else { visit.u64_or_0(attr.wrapping_add(offset)) }
}

fn half(visit: &Visit<'_>, attr: u64, offset: u64) -> u64 {
    if offset + 4 > visit.count(2) { 0 } else { visit.u32_or_0(attr.wrapping_add(offset)) }
}

/// The bytes of a key and of a value of the map whose descriptor stands at `offset`; none if they are not known.
fn sizes(visit: &Visit<'_>, attr: u64, offset: u64) -> (u64, u64) {
    let map = visit.memory().bpf_map(half(visit, attr, offset) as i32);
    map.map_or((0, 0), |(key, value)| (u64::from(key), u64::from(value)))
}

fn element(visit: &mut Visit<'_>, attr: u64, is_lookup: bool) {
    let (key, value) = sizes(visit, attr, 0);
    visit.input("bpf(attr->key)", word(visit, attr, 8), key);
    let at = word(visit, attr, 16);
    if is_lookup {
        visit.whole("bpf(attr->value)", at, value);
    } else {
        visit.input("bpf(attr->value)", at, value);
    }
}

fn key(visit: &mut Visit<'_>, attr: u64) {
    let (key, _) = sizes(visit, attr, 0);
    visit.input("bpf(attr->key)", word(visit, attr, 8), key);
}

fn next_key(visit: &mut Visit<'_>, attr: u64) {
    let (key, _) = sizes(visit, attr, 0);
    if word(visit, attr, 8) != 0 {
        visit.input("bpf(attr->key)", word(visit, attr, 8), key);
    }
    visit.whole("bpf(attr->next_key)", word(visit, attr, 16), key);
}

fn load_program(visit: &mut Visit<'_>, attr: u64) {
    visit.input("bpf(attr->insns)", word(visit, attr, 8), half(visit, attr, 4) * 8);
    visit.text("bpf(attr->license)", word(visit, attr, 16), 128);
    if half(visit, attr, 24) != 0 {
        log(visit, "bpf(attr->log_buf)", word(visit, attr, 32), half(visit, attr, 28));
    }
}

fn load_types(visit: &mut Visit<'_>, attr: u64) {
    visit.input("bpf(attr->btf)", word(visit, attr, 0), half(visit, attr, 16));
    if half(visit, attr, 24) != 0 {
        log(visit, "bpf(attr->btf_log_buf)", word(visit, attr, 8), half(visit, attr, 20));
    }
}

/// The verifier's text ends with a zero, and is most wanted when the call failed.
fn log(visit: &mut Visit<'_>, name: &'static str, address: u64, size: u64) {
    if visit.is_before() {
        visit.output(name, address, size, 0);
    } else {
        visit.failed_text(name, address, size);
    }
}

fn test_run(visit: &mut Visit<'_>, attr: u64) {
    visit.input("bpf(attr->test.data_in)", word(visit, attr, 16), half(visit, attr, 8));
    visit.input("bpf(attr->test.ctx_in)", word(visit, attr, 48), half(visit, attr, 40));
    for (slot, name, size_at, at) in [(0, "bpf(attr->test.data_out)", 12, 24), (1, "bpf(attr->test.ctx_out)", 44, 56)] {
        let now = half(visit, attr, size_at);
        let room = visit.keep(slot, now);
        let address = word(visit, attr, at);
        if address != 0 {
            visit.output(name, address, room, now);
        }
    }
    visit.whole("bpf(attr->test.retval)", attr.wrapping_add(4), 4);
    visit.whole("bpf(attr->test.data_size_out)", attr.wrapping_add(12), 4);
    visit.whole("bpf(attr->test.duration)", attr.wrapping_add(36), 4);
    visit.whole("bpf(attr->test.ctx_size_out)", attr.wrapping_add(44), 4);
}

fn info(visit: &mut Visit<'_>, attr: u64) {
    let now = half(visit, attr, 4);
    let room = visit.keep(0, now);
    visit.output("bpf(attr->info.info)", word(visit, attr, 8), room, now);
    visit.whole("bpf(attr->info.info_len)", attr.wrapping_add(4), 4);
}

fn query(visit: &mut Visit<'_>, attr: u64) {
    let now = half(visit, attr, 24);
    let room = visit.keep(0, now);
    let ids = word(visit, attr, 16);
    if ids != 0 {
        visit.output("bpf(attr->query.prog_ids)", ids, room * 4, now * 4);
    }
    visit.whole("bpf(attr->query.attach_flags)", attr.wrapping_add(12), 4);
    visit.whole("bpf(attr->query.prog_cnt)", attr.wrapping_add(24), 4);
}

fn task_query(visit: &mut Visit<'_>, attr: u64) {
    let now = half(visit, attr, 12);
    let room = visit.keep(0, now);
    let buffer = word(visit, attr, 16);
    if buffer != 0 {
        visit.output("bpf(attr->task_fd_query.buf)", buffer, room, now + 1);
    }
    visit.whole("bpf(attr->task_fd_query.buf_len)", attr.wrapping_add(12), 4);
    visit.whole("bpf(attr->task_fd_query.prog_id)", attr.wrapping_add(24), 24);
}

/// Many elements at once; how many were is written to the count.
fn batch(visit: &mut Visit<'_>, attr: u64) {
    const LOOKUPS: [i64; 2] = [24, 25];
    const DELETE: i64 = 27;
    let (key, value) = sizes(visit, attr, 36);
    let now = half(visit, attr, 32);
    let room = visit.keep(0, now);
    let (keys, values) = (word(visit, attr, 16), word(visit, attr, 24));
    if LOOKUPS.contains(&visit.int(0)) {
        visit.output("bpf(attr->batch.keys)", keys, room * key, now * key);
        visit.output("bpf(attr->batch.values)", values, room * value, now * value);
        if word(visit, attr, 0) != 0 {
            visit.input("bpf(attr->batch.in_batch)", word(visit, attr, 0), 4);
        }
        visit.whole("bpf(attr->batch.out_batch)", word(visit, attr, 8), 4);
    } else {
        visit.input("bpf(attr->batch.keys)", keys, room * key);
        if visit.int(0) != DELETE {
            visit.input("bpf(attr->batch.values)", values, room * value);
        }
    }
    visit.whole("bpf(attr->batch.count)", attr.wrapping_add(32), 4);
}
