//! `bench kernel`: a dump of kmemleak with many objects, read, merged and printed by the whole command.

use std::io::{self, Write};

use anyhow::Result;
use leakscope_e2e::{Run, leakscope_bin, target_dir};

use super::pairs::spread;
use super::reports::{Cost, once, written};

const OBJECTS: u32 = 100_000;
/// Distinct backtraces: tens of thousands of objects come from few places.
const BACKTRACES: u32 = 2_000;

/// Measures, in so many rounds; gives the table.
///
/// # Errors
/// A file cannot be written, or a command fails.
pub fn table(quick: bool) -> Result<String> {
    let rounds = if quick { 3 } else { 7 };
    std::fs::create_dir_all(target_dir().join("bench"))?;
    let scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
    let path = scratch.path().join("kmemleak.txt");
    let megabytes = written(&path, |out| dump(out, OBJECTS))? as f64 / 1e6;
    let run = Run::new(leakscope_bin()).arg("import").arg(&path);
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let cost = Cost::of(&once(&run, &[0])?);
        eprintln!("  {:.2} s, CPU {:.2} s, {:.0} MB", cost.seconds, cost.cpu_seconds, cost.peak_megabytes);
        costs.push(cost);
    }
    let shown = |pick: fn(&Cost) -> f64| {
        let values: Vec<f64> = costs.iter().map(pick).collect();
        spread(&values).map_or_else(
            || "-".to_owned(),
            |(median, least, greatest)| format!("**{median:.2}** s ({least:.2} to {greatest:.2})"),
        )
    };
    let peak = costs.iter().map(|cost| cost.peak_megabytes).fold(0.0, f64::max);
    let mut text = String::from("| what | to reach | measured |\n|---|---|---|\n");
    text += &format!(
        "| kmemleak dump of {OBJECTS} objects ({megabytes:.0} MB) read, merged into {BACKTRACES} loss records and printed | 2 s | \
         {}, CPU {}, {peak:.0} MB |\n",
        shown(|cost| cost.seconds),
        shown(|cost| cost.cpu_seconds),
    );
    text += &format!("\nMedian (least to greatest) of {rounds} runs of `leakscope import`, the report as text.\n");
    text += &super::trace::table(quick)?;
    Ok(text)
}

/// A dump as 6.12 writes it.
fn dump(out: &mut dyn Write, objects: u32) -> io::Result<()> {
    for number in 0..objects {
        let (backtrace, address) = (number % BACKTRACES, 0xffff_8881_0000_0000_u64 + u64::from(number) * 256);
        let (pid, jiffies) = (1000 + number % 97, 4_294_900_000_u64 + u64::from(number));
        writeln!(out, "unreferenced object {address:#x} (size 192):")?;
        writeln!(out, "  comm \"worker/{}\", pid {pid}, jiffies {jiffies}\n  hex dump (first 32 bytes):", pid % 7)?;
        for _ in 0..2 {
            writeln!(out, "    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  kkkkkkkkkkkkkkkk")?;
        }
        writeln!(
            out,
            "  backtrace (crc {:x}):\n    __kmalloc_cache_noprof+0x19b/0x350",
            number.wrapping_mul(2_654_435_761)
        )?;
        for depth in 0..8 {
            let function = (backtrace >> depth) + depth * 10_000;
            writeln!(out, "    function_{function}+0x{:x}/0x200 [module_{}]", 16 + depth, function % 12)?;
        }
        writeln!(out, "    do_syscall_64+0x3b/0xc0\n    entry_SYSCALL_64_after_hwframe+0x4b/0x53")?;
    }
    Ok(())
}
