//! Names of a scan: binutils' addr2line on the same `vmlinux` is the oracle for the kernel's functions, `leaky.c` itself
//! for those of a module that is compressed.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::kmemleak::{details, records, table};
use super::{Kernel, Sections};
use crate::step::step;

/// How distributions compress modules. Source: Linux `scripts/Makefile.modinst`.
const COMPRESSORS: [(&str, &[&str]); 3] = [
    ("gz", &["gzip", "-n", "-f"]),
    ("xz", &["xz", "--check=crc32", "--lzma2=dict=1MiB", "-f"]),
    ("zst", &["zstd", "-q", "--rm", "-f"]),
];

/// Puts the kernel's own files and compressed modules into the guest.
pub(super) fn files(kernel: &Kernel, root: &Path) -> Result<()> {
    let build = kernel.build.as_ref().context("the kernel was not built here")?;
    for name in ["vmlinux", "System.map"] {
        fs::copy(build.join(name), root.join("boot").join(name)).with_context(|| format!("copy {name}"))?;
    }
    for (ending, words) in COMPRESSORS {
        let folder = root.join("packed").join(ending);
        fs::create_dir_all(&folder)?;
        let module = folder.join("leaky.ko");
        fs::copy(kernel.modules.join("leaky.ko"), &module).context("copy leaky.ko")?;
        step(&[words, &[module.to_str().context("the path is not UTF-8")?]].concat())?;
    }
    Ok(())
}

/// Function, file and line of a frame.
type Line = (String, String, u64);

/// Judges `scripts/names.sh`.
pub(super) fn judge(kernel: &Kernel, sections: &Sections) -> Result<()> {
    let functions = table()?.iter().filter(|row| row.kmemleak.is_some()).count();
    for name in ["vmlinux", "gz", "zst"] {
        let found = records(sections.text(name, 0)?, &["leaky"])?;
        let seen: BTreeSet<&str> = found.iter().map(|(record, _)| record.0.as_str()).collect();
        ensure!(seen.len() == functions, "{name}: {seen:?}");
        for (record, value) in &found {
            details(record, value).with_context(|| name.to_owned())?;
        }
    }
    let build = kernel.build.as_ref().context("the kernel was not built here")?;
    let symbols = symbols(&build.join("System.map"))?;
    let lines = kernel_lines(sections, build, &symbols)?;
    addresses(sections, &symbols)?;
    let text = sections.text("foreign", 0)?;
    for words in ["it is no ELF file", "expected the kernel's System.map"] {
        ensure!(text.contains(words), "no `{words}` in {text}");
    }
    eprintln!("vm: {lines} lines of the kernel are addr2line's, on {}", kernel.release);
    Ok(())
}

/// Functions that `System.map` has once, with their addresses.
fn symbols(path: &Path) -> Result<HashMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut all: HashMap<String, Option<u64>> = HashMap::new();
    for line in text.lines() {
        let (Some(digits), Some(name)) = (line.split(' ').next(), line.split(' ').nth(2)) else { continue };
        let address = u64::from_str_radix(digits, 16).ok();
        all.entry(name.to_owned()).and_modify(|other| *other = None).or_insert(address);
    }
    Ok(all.into_iter().filter_map(|(name, address)| Some((name, address?))).collect())
}

/// Frames of the kernel in the backtraces of our module, as kmemleak wrote them: function and offset.
fn written(dump: &str) -> Vec<Vec<(String, u64)>> {
    let mut backtraces = Vec::new();
    for object in dump.split("unreferenced object").filter(|object| object.contains("[leaky]")) {
        let frames =
            object.lines().skip_while(|line| !line.contains("[leaky]")).filter(|line| !line.contains("[leaky]"));
        let frame = |line: &str| {
            let (function, rest) = line.trim().split_once("+0x")?;
            Some((function.to_owned(), u64::from_str_radix(rest.split('/').next()?, 16).ok()?))
        };
        backtraces.push(frames.map_while(frame).take_while(|(name, _)| !is_entry(name)).collect());
    }
    backtraces
}

/// Where the frames of every system call begin, which reports leave out.
fn is_entry(function: &str) -> bool {
    ["x64_sys_call", "do_syscall_64", "entry_SYSCALL_64", "ret_from_fork"]
        .iter()
        .any(|front| function.starts_with(front))
}

/// Each frame of the kernel is what addr2line says; gives how many there were.
fn kernel_lines(sections: &Sections, build: &Path, symbols: &HashMap<String, u64>) -> Result<usize> {
    let mut expected: BTreeSet<Vec<Line>> = BTreeSet::new();
    for frames in written(sections.text("dump", 0)?) {
        let mut lines = Vec::new();
        for (function, offset) in &frames {
            let address = symbols.get(function).with_context(|| format!("System.map has no {function}"))?;
            lines.extend(addr2line(&build.join("vmlinux"), address + offset - 1, function)?);
        }
        expected.insert(lines);
    }
    let (mut seen, mut inlined) = (BTreeSet::new(), 0);
    for (_, value) in records(sections.text("vmlinux", 0)?, &["leaky"])? {
        let frames = value["stack"]["frames"].as_array().cloned().unwrap_or_default();
        let of_kernel = frames.iter().skip(1).filter(|frame| frame["module"].as_str() == Some("vmlinux"));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        seen.insert(
            of_kernel
                .map(|frame| {
                    inlined += usize::from(frame["inlined"].as_bool() == Some(true));
                    (word(&frame["function"]), word(&frame["file"]), frame["line"].as_u64().unwrap_or(0))
                })
                .collect::<Vec<Line>>(),
        );
    }
    ensure!(seen == expected, "lines of the kernel: {seen:#?}\nexpected: {expected:#?}");
    ensure!(inlined > 0, "no inlined function among {seen:#?}");
    Ok(seen.iter().map(Vec::len).sum())
}

/// The functions at an address, innermost first; the outermost has the kernel's name, which may say that it is a clone.
fn addr2line(vmlinux: &Path, address: u64, name: &str) -> Result<Vec<Line>> {
    let address = format!("{address:#x}");
    let output = Command::new("addr2line").args(["-f", "-i", "-e"]).arg(vmlinux).arg(&address).output();
    let output = output.context("start addr2line")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.lines().collect();
    let mut lines = Vec::new();
    for pair in words.chunks(2) {
        let &[function, place] = pair else { bail!("addr2line {address}: {text}") };
        let (file, line) = place.rsplit_once(':').with_context(|| format!("addr2line {address}: {text}"))?;
        let line = line.split(' ').next().and_then(|digits| digits.parse().ok());
        let file = file.rsplit('/').next().unwrap_or_default();
        lines.push((function.to_owned(), file.to_owned(), line.with_context(|| format!("{address}: {text}"))?));
    }
    if let Some(outer) = lines.last_mut() {
        name.clone_into(&mut outer.0);
    }
    Ok(lines)
}

/// With `--system-map` addresses are those that the kernel was linked for.
fn addresses(sections: &Sections, symbols: &HashMap<String, u64>) -> Result<()> {
    let expected: BTreeSet<u64> = written(sections.text("dump", 0)?)
        .iter()
        .flatten()
        .filter_map(|(function, offset)| Some(symbols.get(function)? + offset))
        .collect();
    let mut seen = BTreeSet::new();
    for (_, value) in records(sections.text("zst", 0)?, &["leaky"])? {
        for frame in value["stack"]["frames"].as_array().into_iter().flatten().skip(1) {
            if frame["module"].as_str() == Some("vmlinux") {
                let digits = frame["address"].as_str().unwrap_or_default().trim_start_matches("0x");
                seen.insert(u64::from_str_radix(digits, 16).with_context(|| format!("{frame}"))?);
            }
        }
    }
    ensure!(seen == expected, "addresses: {seen:x?}\nexpected: {expected:x?}");
    Ok(())
}
