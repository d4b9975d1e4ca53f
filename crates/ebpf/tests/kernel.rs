//! The tracer on the kernel that runs here. Where programs may not be loaded, each test says so and passes: the virtual
//! machine of `cargo xtask vm` runs the tracer then.
//!
//! Oracles: /proc/slabinfo, the number of objects that a test makes, and the exact counts of events.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use leakscope_ebpf::kmem::{CHECK_EVERY, Config, Tracer};
use leakscope_ebpf::{Filter, Kind, Limits, LiveSite, Snapshot, Watch};

/// One tracer at a time: slabinfo is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(kinds: &[Kind], sample_bytes: u64) -> Config {
    Config {
        kinds: kinds.to_vec(),
        filter: Filter::default(),
        limits: Limits { sample_bytes, blocks: 1 << 19, sites: 8192, events_per_second: 0 },
        outermost_text: outermost_text(),
        check_every: CHECK_EVERY,
    }
}

/// Where `do_syscall_64` lies.
fn outermost_text() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/kallsyms").ok()?;
    let symbol = |line: &str| Some((u64::from_str_radix(line.get(..16)?, 16).ok()?, line.get(19..)?.to_owned()));
    let symbols: Vec<(u64, String)> = text.lines().filter_map(symbol).collect();
    let begin = symbols.iter().find(|(_, name)| name == "do_syscall_64")?.0;
    let end = symbols.iter().map(|&(address, _)| address).filter(|&address| address > begin).min()?;
    Some((begin, end))
}

/// A tracer, or `None` with the reason printed.
fn start(config: &Config) -> Option<Tracer> {
    match Tracer::start(config) {
        Ok(tracer) => Some(tracer),
        Err(error) if error.to_string().contains("does not take") => panic!("{error}"),
        Err(error) => {
            eprintln!("not run here: {error}");
            None
        }
    }
}

fn of_cache<'a>(snapshot: &'a Snapshot, cache: &'a str) -> impl Iterator<Item = &'a LiveSite> {
    snapshot.sites.iter().filter(move |site| site.site.cache == cache)
}

/// Objects in use of a cache. Free ones in slabs that a processor keeps for itself count as used there, so these slabs
/// are given back first, where sysfs can be written. Source: Linux `mm/slub.c`, `get_slabinfo` and `shrink_store`.
fn slabinfo(cache: &str) -> u64 {
    let _ = std::fs::write(format!("/sys/kernel/slab/{cache}/shrink"), "1");
    let text = std::fs::read_to_string("/proc/slabinfo").expect("slabinfo");
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(cache)).expect("the cache");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// Makes something in the kernel that lasts: `count` eventfds.
///
/// Each has one file and one `struct eventfd_ctx`; children of ours do it, because the tracer leaves its own process out.
struct Holder {
    child: std::process::Child,
}

impl Holder {
    /// Starts a program that waits until it is told.
    fn new(count: usize) -> Self {
        let script = format!(
            "import os,sys,resource\nlimit=resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
             resource.setrlimit(resource.RLIMIT_NOFILE,(limit,limit))\nprint('ready',flush=True)\nsys.stdin.readline()\n\
             held=[os.eventfd(0) for _ in range({count})]\nprint('held',flush=True)\nsys.stdin.readline()\n\
             for f in held: os.close(f)\n\nprint('gone',flush=True)\nsys.stdin.readline()\n",
        );
        Self::running(&script)
    }

    /// Runs a script of Python up to its first line of output.
    fn running(script: &str) -> Self {
        let child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let mut holder = Self { child };
        holder.wait();
        holder
    }

    /// Lets it go one step on, and waits until it has.
    fn step(&mut self) {
        use std::io::Write;
        self.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it reads");
        self.wait();
    }

    /// Waits until it says how far it is.
    fn wait(&mut self) {
        use std::io::{BufRead, BufReader};
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it answers");
        assert!(["ready", "held", "gone"].contains(&line.trim_end()), "{line:?}");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const HELD: usize = 18_000;

#[test]
fn what_is_held_is_counted_and_slabinfo_agrees() {
    let _alone = alone();
    let mut holder = Holder::new(HELD);
    let mut exact = config(&[Kind::Kmalloc, Kind::Slab], 0);
    exact.filter.pid = Some(holder.child.id());
    let Some(mut tracer) = start(&exact) else { return };
    let before = slabinfo("filp");
    holder.step();
    let snapshot = tracer.snapshot(0).unwrap();
    let grown = slabinfo("filp") - before;
    let files: f64 = of_cache(&snapshot, "filp").map(|site| site.live.blocks.value).sum();
    assert_eq!(files, HELD as f64, "one file for each eventfd");
    let difference = (grown as f64 - files).abs() / files;
    assert!(difference < 0.01, "slabinfo grew by {grown}, we saw {files}: {difference}");
    // `struct eventfd_ctx` comes from kmalloc, all from one place.
    let contexts = snapshot.sites.iter().filter(|site| site.kind == Kind::Kmalloc).map(|site| site.live.blocks.value);
    assert_eq!(contexts.fold(0.0, f64::max), HELD as f64);
    let lost = tracer.counters().unwrap().lost;
    assert_eq!((lost.blocks_full, lost.stacks_full, lost.stacks_failed), (0, 0, 0));
    // Released files go through task work and RCU; their releases are counted when they come.
    holder.step();
    let mut left = f64::MAX;
    for _ in 0..1000 {
        left = of_cache(&tracer.snapshot(0).unwrap(), "filp").map(|site| site.live.blocks.value).sum();
        if left == 0.0 {
            break;
        }
    }
    assert_eq!(left, 0.0, "all are released");
}

#[test]
fn sums_and_events_agree_exactly() {
    let _alone = alone();
    let mut holder = Holder::new(HELD);
    let mut exact = config(&[Kind::Slab], 0);
    exact.filter.pid = Some(holder.child.id());
    let Some(mut tracer) = start(&exact) else { return };
    holder.step();
    tracer.stop_allocations();
    let (snapshot, counters) = (tracer.snapshot(0).unwrap(), tracer.counters().unwrap());
    let (events, bytes) = counters.allocations(Kind::Slab);
    // Sites without anything outstanding are not in a snapshot, so what is there is a lower bound of the events.
    let allocated: f64 = snapshot.sites.iter().map(|site| site.sums.blocks).sum();
    assert!(allocated <= events as f64, "{allocated} {events}");
    assert!(bytes >= snapshot.all[&Kind::Slab].usable.value as u64);
    for site in &snapshot.sites {
        assert!(site.live.blocks.value <= site.sums.blocks, "{site:?}");
        assert_eq!(site.live.blocks.value, site.sampled as f64, "exact: each block stands for itself");
        assert_eq!(site.live.bytes.variance, 0.0);
    }
}

#[test]
fn estimates_hold_what_they_promise() {
    let _alone = alone();
    const SAMPLE_BYTES: u64 = 16 << 10;
    let mut inside = 0;
    const ROUNDS: usize = 8;
    for _ in 0..ROUNDS {
        let mut holder = Holder::new(HELD);
        let mut sampled = config(&[Kind::Slab], SAMPLE_BYTES);
        sampled.filter.pid = Some(holder.child.id());
        let Some(mut tracer) = start(&sampled) else { return };
        holder.step();
        let snapshot = tracer.snapshot(0).unwrap();
        let mut blocks = leakscope_ebpf::Estimate::default();
        let mut taken = 0;
        for site in of_cache(&snapshot, "filp") {
            blocks.merge(site.live.blocks);
            taken += site.sampled;
        }
        assert!(taken > 50 && taken < HELD as u64 / 4, "{taken} samples");
        let off = (blocks.value - HELD as f64).abs();
        assert!(off < 5.0 * blocks.margin() / 1.96, "five standard deviations: {blocks:?}");
        inside += usize::from(off <= blocks.margin());
    }
    // Of intervals that hold in 95 of 100 cases, four of eight are out once in three million times.
    assert!(inside > ROUNDS / 2, "{inside} of {ROUNDS} intervals hold the truth");
}

#[test]
fn a_full_table_of_stacks_leaves_the_totals_right() {
    let _alone = alone();
    let mut holder = Holder::new(HELD);
    let mut tiny = config(&[Kind::Kmalloc, Kind::Slab], 0);
    tiny.limits.sites = 1;
    tiny.filter.pid = Some(holder.child.id());
    let Some(mut tracer) = start(&tiny) else { return };
    holder.step();
    let snapshot = tracer.snapshot(0).unwrap();
    let lost = tracer.counters().unwrap().lost;
    assert!(lost.stacks_full > 0, "more than one stack allocates");
    let stacks = snapshot.sites.iter().filter(|site| !site.site.addresses.is_empty()).count();
    assert!(stacks <= 1, "{stacks}");
    // Files and contexts, wherever they are accounted.
    let slab = snapshot.all[&Kind::Slab].blocks.value;
    let kmalloc = snapshot.all[&Kind::Kmalloc].blocks.value;
    assert!(slab >= HELD as f64 && kmalloc >= HELD as f64, "{slab} {kmalloc}");
    let by_site: f64 = snapshot.sites.iter().map(|site| site.live.blocks.value).sum();
    assert_eq!(by_site, slab + kmalloc);
}

#[test]
fn a_full_table_of_blocks_is_told() {
    let _alone = alone();
    let mut holder = Holder::new(HELD);
    let mut tiny = config(&[Kind::Slab], 0);
    tiny.limits.blocks = 1024;
    tiny.filter.pid = Some(holder.child.id());
    let Some(mut tracer) = start(&tiny) else { return };
    holder.step();
    let (snapshot, counters) = (tracer.snapshot(0).unwrap(), tracer.counters().unwrap());
    assert!(snapshot.tracked <= 1024, "{}", snapshot.tracked);
    assert!(counters.lost.blocks_full >= (HELD - 1024) as u64, "{:?}", counters.lost);
    assert!(counters.lost.block_bytes > counters.lost.blocks_full * 64, "with their bytes: {:?}", counters.lost);
    // Each allocation is in the table, was there, or is counted as lost.
    let (events, _) = counters.allocations(Kind::Slab);
    assert!(events >= counters.lost.blocks_full + snapshot.tracked);
}

#[test]
fn pages_of_a_mapping_are_counted_and_given_back() {
    let _alone = alone();
    const PAGES: usize = 4096;
    let script = format!(
        "import mmap,sys\nm=mmap.mmap(-1,{0}*4096)\nm.madvise(15)\nprint('ready',flush=True)\nsys.stdin.readline()\n\
         for i in range({0}): m[i*4096]=1\n\nprint('held',flush=True)\nsys.stdin.readline()\nm.close()\n\
         print('gone',flush=True)\nsys.stdin.readline()\n",
        PAGES
    );
    let mut holder = Holder::running(&script);
    let mut exact = config(&[Kind::Pages], 0);
    exact.filter.pid = Some(holder.child.id());
    let Some(mut tracer) = start(&exact) else { return };
    holder.step();
    let held = tracer.snapshot(0).unwrap().all[&Kind::Pages];
    // The pages themselves, page tables, and what Python touches besides.
    assert!(held.usable.value >= (PAGES * 4096) as f64, "{held:?}");
    assert!(held.usable.value < (PAGES * 4096) as f64 * 1.1, "{held:?}");
    holder.step();
    let mut left = f64::MAX;
    for _ in 0..1000 {
        left = tracer.snapshot(0).unwrap().all.get(&Kind::Pages).map_or(0.0, |owner| owner.usable.value);
        if left < (PAGES * 4096) as f64 * 0.1 {
            return;
        }
    }
    panic!("{left} bytes of pages are left");
}

#[test]
fn nothing_stays_attached() {
    let _alone = alone();
    let Some(tracer) = start(&config(&Kind::KERNEL, 1 << 20)) else { return };
    let during = programs_of_ours();
    drop(tracer);
    assert!(during >= 8, "{during} programs while it runs");
    // The kernel frees programs after a grace period, which membarrier waits for.
    let mut left = usize::MAX;
    for _ in 0..2000 {
        left = programs_of_ours();
        if left == 0 {
            break;
        }
        grace_period();
    }
    assert_eq!(left, 0);
}

/// Programs with a name of ours that the kernel has.
fn programs_of_ours() -> usize {
    const NAMES: [&str; 8] = [
        "kmalloc_plain",
        "slab_cache",
        "slab_plain",
        "page_alloc",
        "page_free",
        "kfree_plain",
        "slab_free",
        "vmap_alloc",
    ];
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| {
            program.name_as_str().is_some_and(|name| NAMES.contains(&name) || name.starts_with("percpu_"))
        })
        .count()
}

/// Waits for readers of RCU: opening and closing a perf event does not; MEMBARRIER_CMD_GLOBAL does.
fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: the command takes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

#[test]
fn events_are_printed_and_limited() {
    let _alone = alone();
    let mut holder = Holder::new(HELD);
    let mut printing = config(&[Kind::Slab], 1 << 30);
    printing.filter.pid = Some(holder.child.id());
    printing.limits.events_per_second = 100;
    let Some(mut tracer) = start(&printing) else { return };
    let mut events = tracer.take_events().unwrap();
    holder.step();
    let mut seen = Vec::new();
    while let Some(event) = events.next_event() {
        seen.push(event);
    }
    let first = seen.iter().find(|event| !event.is_release).expect("allocations");
    assert_eq!((first.kind, first.tgid, first.comm.as_str()), (Kind::Slab, holder.child.id(), "python3"));
    assert!(first.address > 1 << 63 && first.requested > 0 && first.usable >= first.requested && first.call_site != 0);
    let lost = tracer.counters().unwrap().lost;
    assert!(lost.events_rate + lost.events_full >= HELD as u64 - seen.len() as u64, "{lost:?}");
}

#[test]
fn the_tracers_own_process_is_left_out() {
    let _alone = alone();
    let Some(mut tracer) = start(&config(&[Kind::Slab], 0)) else { return };
    let held: Vec<File> = (0..512).map(|_| File::open("/proc/self/maps").unwrap()).collect();
    assert!(held.iter().all(|file| file.as_raw_fd() >= 0));
    let snapshot = tracer.snapshot(0).unwrap();
    let own = snapshot.processes.iter().find(|(tgid, _)| *tgid == std::process::id());
    assert_eq!(own, None);
}

#[test]
fn stacks_that_are_recalled_are_those_of_the_kernel() {
    let _alone = alone();
    let mut holder = Holder::running(
        "import os,sys,socket\nprint('ready',flush=True)\nsys.stdin.readline()\n\
         for i in range(3000):\n  f=os.open('/proc/self/stat',0); os.read(f,99); os.close(f)\n  a,b=socket.socketpair(); a.send(b'x'*200); a.close(); b.close()\n  \
         r,w=os.pipe(); os.write(w,b'y'); os.close(r); os.close(w)\n  x=bytearray(1<<17)\n\nprint('held',flush=True)\nsys.stdin.readline()\n",
    );
    let mut checking = config(&Kind::KERNEL, 0);
    checking.check_every = 1;
    let Some(mut tracer) = start(&checking) else { return };
    holder.step();
    tracer.stop_allocations();
    let counters = tracer.counters().unwrap();
    let recalled: u64 = counters.programs.iter().map(|program| program.recalled).sum();
    let unwound: u64 = counters.programs.iter().map(|program| program.unwound).sum();
    let checked: u64 = counters.programs.iter().map(|program| program.checked).sum();
    eprintln!("{recalled} stacks recalled, {} of them wrong; {unwound} unwound", counters.lost.stacks_wrong);
    assert_eq!(checked + counters.lost.stacks_wrong, recalled, "every one of them is compared");
    assert!(recalled > unwound, "{recalled} against {unwound}");
    // Words that earlier calls left on the stack can teach a wrong distance, until a comparison shows it.
    assert!(counters.lost.stacks_wrong * 10_000 <= recalled, "{} of {recalled}", counters.lost.stacks_wrong);
}

/// A process of this test's own program that runs one of the ignored tests below.
fn helper(name: &str) -> Holder {
    let own = std::env::current_exe().expect("this program");
    let child = std::process::Command::new(own)
        .args(["--ignored", "--exact", name, "--nocapture"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("this program");
    Holder { child }
}

impl Holder {
    /// Reads until a line has this word; whether one came.
    fn hears(&mut self, word: &str) -> bool {
        use std::io::Read;
        let out = self.child.stdout.as_mut().expect("piped");
        let (mut line, mut byte) = (Vec::new(), [0u8]);
        while matches!(out.read(&mut byte), Ok(1)) {
            if byte[0] != b'\n' {
                line.push(byte[0]);
            } else if String::from_utf8_lossy(&std::mem::take(&mut line)).contains(word) {
                return true;
            }
        }
        false
    }
}

/// Numbers of the programs that a process has open.
fn programs_of(pid: u32) -> Vec<u32> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process is there");
    let texts = folder.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

#[test]
#[ignore = "a_killed_tracer_leaves_nothing starts it, and kills it"]
fn traces_until_it_is_killed() {
    let Some(_tracer) = start(&config(&Kind::KERNEL, 0)) else { return };
    println!("\nattached");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_tracer_leaves_nothing() {
    let _alone = alone();
    let mut tracer = helper("traces_until_it_is_killed");
    if !tracer.hears("attached") {
        eprintln!("not run here: it said why");
        return;
    }
    let programs = programs_of(tracer.child.id());
    assert!(programs.len() >= 8, "{programs:?}");
    tracer.child.kill().expect("it runs");
    tracer.child.wait().expect("it ends");
    let mut left = usize::MAX;
    for _ in 0..2000 {
        let loaded = aya::programs::loaded_programs().filter_map(Result::ok);
        left = loaded.filter(|program| programs.contains(&program.id())).count();
        if left == 0 {
            break;
        }
        grace_period();
    }
    assert_eq!(left, 0, "of {programs:?}");
}

const CHURNING_THREADS: usize = 4;
const CHURNS: usize = 20_000;
const KEPT: usize = 500;

#[test]
#[ignore = "addresses_that_are_used_again_on_other_processors_stay_exact starts it"]
fn churns_and_keeps() {
    let mut line = String::new();
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: one rlimit of ours.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    let eventfd = || {
        // SAFETY: the call takes no memory.
        let fd = unsafe { libc::eventfd(0, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        fd
    };
    println!("\nready");
    std::io::stdin().read_line(&mut line).unwrap();
    let threads = (0..CHURNING_THREADS).map(|_| {
        std::thread::spawn(move || {
            for _ in 0..CHURNS {
                let fd = eventfd();
                // SAFETY: the descriptor is ours.
                unsafe { libc::close(fd) };
            }
            for _ in 0..KEPT {
                eventfd();
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("held");
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn addresses_that_are_used_again_on_other_processors_stay_exact() {
    let _alone = alone();
    let mut churner = helper("churns_and_keeps");
    assert!(churner.hears("ready"));
    let mut exact = config(&[Kind::Kmalloc, Kind::Slab], 0);
    exact.filter.pid = Some(churner.child.id());
    let Some(mut tracer) = start(&exact) else { return };
    {
        use std::io::Write;
        churner.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it reads");
    }
    assert!(churner.hears("held"));
    // Files are released a little later, by RCU.
    let (mut files, mut contexts) = (0.0, 0.0);
    for _ in 0..1000 {
        let snapshot = tracer.snapshot(0).unwrap();
        files = of_cache(&snapshot, "filp").map(|site| site.live.blocks.value).sum();
        let kmalloc = snapshot.sites.iter().filter(|site| site.kind == Kind::Kmalloc);
        contexts = kmalloc.map(|site| site.live.blocks.value).fold(0.0, f64::max);
        if files <= (CHURNING_THREADS * KEPT) as f64 {
            break;
        }
        grace_period();
    }
    let lost = tracer.counters().unwrap().lost;
    assert_eq!((files, contexts), ((CHURNING_THREADS * KEPT) as f64, (CHURNING_THREADS * KEPT) as f64), "{lost:?}");
    let (allocations, _) = tracer.counters().unwrap().allocations(Kind::Kmalloc);
    assert!(allocations >= (CHURNING_THREADS * (CHURNS + KEPT)) as u64, "{allocations}");
}
