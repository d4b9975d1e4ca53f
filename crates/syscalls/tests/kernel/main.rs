//! The table against the kernel of this machine: each case makes one real system call on objects that lie beside pages
//! which may not be touched.
//!
//! 1. Which bytes changed must be what [`written`] says. Each case runs with two patterns, so a written byte shows in
//!    one of the runs at least. No changed byte may be missing, and none may be told that did not change, unless the
//!    case had set it before (the kernel may write what was there) or is marked `loose`.
//! 2. The call must not fault: all that lies outside of the objects, before them in one run and behind them in the
//!    other, is forbidden.
//! 3. The call must do the same if all is forbidden behind the last byte that [`check`] or [`written`] names of an
//!    object.
//! 4. The descriptors that are open afterwards and were not before, and the other way round, must be those of
//!    [`descriptors`].
//! 5. The call must fault, or do less, if the last byte that [`check`] or [`written`] names of an object is forbidden.

mod cases;
mod cases_device;
mod cases_file;
mod cases_net;
mod cases_process;
mod world;

use std::collections::BTreeSet;

use leakscope_syscalls::{Access, Descriptor, Region, check, descriptors, lookup, written};

use world::{Native, Placement, World, raw};

/// One call, and how to prepare it.
pub struct Case {
    name: &'static str,
    number: i64,
    prepare: fn(&mut World) -> [u64; 6],
    /// The error with which it ends, 0 if it succeeds.
    error: i64,
    /// More may be told as written than changes.
    is_loose: bool,
    /// It does not fault when the last byte is missing.
    is_uncut: bool,
    /// It writes what an earlier call announced or as much as nobody knows before, or touches memory that the table
    /// leaves to later calls and other processes.
    is_late: bool,
}

impl Case {
    const fn fails(self, error: i32) -> Self {
        Self { error: error as i64, ..self }
    }

    const fn loose(self) -> Self {
        Self { is_loose: true, ..self }
    }

    const fn uncut(self) -> Self {
        Self { is_uncut: true, ..self }
    }

    const fn late(self) -> Self {
        Self { is_late: true, ..self }
    }
}

/// A case that succeeds and is held to everything.
const fn case(name: &'static str, number: i64, prepare: fn(&mut World) -> [u64; 6]) -> Case {
    Case { name, number, prepare, error: 0, is_loose: false, is_uncut: false, is_late: false }
}

/// What one run of a case showed.
struct Run {
    result: i64,
    /// For each object: the bytes that changed.
    changed: Vec<BTreeSet<usize>>,
    /// The bytes that the table says were written.
    told: Vec<BTreeSet<usize>>,
    /// One more than the last byte that the kernel must reach.
    reach: Vec<usize>,
    is_set: Vec<Vec<bool>>,
    complaints: Vec<String>,
    is_impossible: bool,
}

/// The bytes of each object that a region covers, and whether it lies in objects as a whole.
fn covered(world: &World, region: &Region) -> (Vec<(usize, usize, usize)>, bool) {
    let mut parts = Vec::new();
    let mut bytes = 0;
    for (index, object) in world.objects.iter().enumerate() {
        let (start, end) = (object.address, object.address + object.size as u64);
        let first = region.address.max(start);
        let last = region.address.saturating_add(region.length).min(end);
        if first < last {
            parts.push((index, (first - start) as usize, (last - start) as usize));
            bytes += last - first;
        }
    }
    (parts, bytes == region.length)
}

fn run(case: &Case, placement: Placement, pattern: u8) -> Run {
    let folder = std::env::temp_dir().join(format!("leakscope-syscalls-{}", std::process::id()));
    let mut world = World::new(placement, pattern, &folder);
    let args = (case.prepare)(&mut world);
    let number = case.number as u64;
    let mut complaints = Vec::new();
    let mut reach = vec![0; world.objects.len()];
    let mut announced = vec![BTreeSet::new(); world.objects.len()];
    let mut regions = Vec::new();
    let before = check(number, &args, &Native, &mut |region| regions.push(region));
    for region in &regions {
        let (parts, is_inside) = covered(&world, region);
        if !is_inside && matches!(placement, Placement::End) {
            complaints.push(format!("{} says {} bytes, outside of the object", region.param, region.length));
        }
        for (object, first, last) in parts {
            announced[object].extend(first..last);
            if region.access != Access::Write {
                reach[object] = reach[object].max(last);
            }
        }
    }
    let images: Vec<Vec<u8>> = world.objects.iter().map(image).collect();
    let open = open_descriptors();
    let mut result = raw(case.number, args);
    if case.number == libc::SYS_modify_ldt {
        // It alone returns its error as a number of 32 bits.
        result = i64::from(result as i32);
    }
    if result == 0 && matches!(case.number, libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork) {
        raw(libc::SYS_exit_group, [0; 6]);
    }
    compare_descriptors(&mut world, &open, (number, args, result), &mut complaints);
    let changed: Vec<BTreeSet<usize>> = world
        .objects
        .iter()
        .zip(&images)
        .map(|(object, old)| {
            let new = image(object);
            (0..old.len()).filter(|place| old[*place] != new[*place]).collect()
        })
        .collect();
    let mut told = vec![BTreeSet::new(); world.objects.len()];
    written(number, &args, result, &before, &Native, &mut |region| {
        assert_eq!(region.access, Access::Write);
        let (parts, is_inside) = covered(&world, &region);
        if !is_inside && matches!(placement, Placement::End) {
            complaints.push(format!("{} wrote {} bytes, outside of the object", region.param, region.length));
        }
        for (object, first, last) in parts {
            told[object].extend(first..last);
            reach[object] = reach[object].max(last);
        }
    });
    for (object, (bytes, known)) in told.iter().zip(&announced).enumerate() {
        if let Some(byte) = bytes.difference(known).next().filter(|_| !case.is_late) {
            complaints.push(format!("byte {byte} of object {object} was written, but not announced before the call"));
        }
    }
    let is_set = world.objects.iter().map(|object| object.is_set.clone()).collect();
    let _ = std::fs::remove_dir_all(&folder);
    Run { result, changed, told, reach, is_set, complaints, is_impossible: world.is_impossible }
}

/// Descriptors that are open, of those that the tests can have.
fn open_descriptors() -> BTreeSet<i32> {
    let is_open = |fd: &i32| raw(libc::SYS_fcntl, [*fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]) >= 0;
    (0..400).filter(is_open).collect()
}

/// Holds what happened to the descriptors against what the table says of it.
fn compare_descriptors(
    world: &mut World,
    before: &BTreeSet<i32>,
    call: (u64, [u64; 6], i64),
    complaints: &mut Vec<String>,
) {
    let after = open_descriptors();
    let mut said = before.clone();
    let (number, args, result) = call;
    descriptors(number, &args, result, &Native, &mut |what| match what {
        Descriptor::Opened(fd) => {
            said.insert(fd);
        }
        Descriptor::Closed(fd) => {
            said.remove(&fd);
        }
        Descriptor::ClosedRange(first, last) => said.retain(|fd| !(first..=last).contains(&(*fd as u32))),
        Descriptor::CloseOnExec(..) | Descriptor::ClosedByExec => {}
    });
    if said != after {
        let (opened, closed) = (after.difference(&said), said.difference(&after));
        complaints.push(format!(
            "opened, and nobody said so: {:?}; closed, and nobody said so: {:?}",
            opened.collect::<Vec<_>>(),
            closed.collect::<Vec<_>>()
        ));
    }
    after.difference(before).for_each(|fd| world.own(*fd));
}

fn image(object: &world::Object) -> Vec<u8> {
    // SAFETY: the visible bytes are mapped, and no reference to them exists.
    unsafe { std::slice::from_raw_parts(object.address as *const u8, object.visible) }.to_vec()
}

/// What the machine may not be able to do: the call is unknown, or not allowed here.
fn is_not_possible(result: i64) -> bool {
    [-libc::ENOSYS, -libc::EPERM, -libc::EACCES].iter().any(|error| i64::from(*error) == result)
}

/// What is wrong with a case; `None` if this machine cannot make the call.
fn verify(case: &Case) -> Option<Vec<String>> {
    let (first, second) = (run(case, Placement::End, 0xa5), run(case, Placement::Start, 0x5a));
    let mut wrong: Vec<String> = first.complaints.iter().chain(&second.complaints).cloned().collect();
    for (run, place) in [(&first, "behind"), (&second, "before")] {
        if run.is_impossible || is_not_possible(run.result) && run.result != -case.error {
            return None;
        }
        let is_right = if case.error == 0 { run.result >= 0 } else { run.result == -case.error };
        if !is_right {
            wrong.push(format!("returned {} with nothing {place} the objects, expected {}", run.result, -case.error));
        }
        for (object, (changed, told)) in run.changed.iter().zip(&run.told).enumerate() {
            let missing: Vec<usize> = changed.difference(told).copied().collect();
            if !missing.is_empty() {
                wrong.push(format!("object {object}: bytes {missing:?} changed, and nobody said so"));
            }
        }
    }
    if !case.is_loose {
        for object in 0..first.told.len().min(second.told.len()) {
            let changed: BTreeSet<usize> = first.changed[object].union(&second.changed[object]).copied().collect();
            let both: BTreeSet<usize> = first.told[object].intersection(&second.told[object]).copied().collect();
            let unchanged: Vec<usize> =
                both.difference(&changed).filter(|byte| !first.is_set[object][**byte]).copied().collect();
            if !unchanged.is_empty() {
                wrong.push(format!("object {object}: bytes {unchanged:?} are told as written, and did not change"));
            }
        }
    }
    for (object, reach) in first.reach.iter().enumerate() {
        if *reach < first.is_set[object].len() && wrong.is_empty() && !case.is_late {
            let rest = run(case, Placement::Cut(object, *reach), 0xa5);
            // The preparation needs it, if not the call.
            if rest.is_impossible {
                continue;
            }
            if (rest.result < 0) != (first.result < 0) || rest.result < 0 && rest.result != first.result {
                wrong.push(format!("object {object}: returned {} without what lies behind byte {reach}", rest.result));
            }
        }
    }
    if !case.is_uncut && wrong.is_empty() {
        for object in 0..first.reach.len() {
            let reach = first.reach[object];
            if reach > 0 {
                let cut = run(case, Placement::Cut(object, reach - 1), 0xa5);
                let is_less = cut.result == -i64::from(libc::EFAULT) || (0..first.result).contains(&cut.result);
                if !is_less {
                    wrong.push(format!("object {object}: returned {} without byte {}", cut.result, reach - 1));
                }
            }
        }
    }
    Some(wrong)
}

#[test]
fn the_kernel_reads_and_writes_what_the_table_says() {
    let mut failures = Vec::new();
    let mut verified = 0;
    let mut impossible = Vec::new();
    let filter = std::env::var("CASE").unwrap_or_default();
    let trace = std::env::var("TRACE").unwrap_or_default();
    let groups = [cases::CASES, cases_file::CASES, cases_net::CASES, cases_process::CASES, cases_device::CASES];
    for case in groups.into_iter().flatten().filter(|case| case.name.contains(&filter)) {
        assert!(lookup(case.number as u64).is_some(), "{}: not in the table", case.name);
        if !trace.is_empty() {
            eprintln!("{}", case.name);
        }
        match verify(case) {
            None => impossible.push(case.name),
            Some(wrong) => {
                verified += 1;
                failures.extend(wrong.into_iter().map(|what| format!("{}: {what}", case.name)));
            }
        }
    }
    println!("{verified} verified, {} not possible here: {impossible:?}", impossible.len());
    assert!(failures.is_empty(), "{} complaints:\n{}", failures.len(), failures.join("\n"));
    assert!(verified >= 120 || !filter.is_empty(), "only {verified} cases were possible");
}
