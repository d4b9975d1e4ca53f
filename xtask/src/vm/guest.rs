//! A guest: its first file system, the emulator, and what it printed between markers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Run, leakscope_bin};

use super::kernels::Kernel;

/// Software emulation on a machine that does other work too.
const LIMIT: Duration = Duration::from_secs(600);
/// Lines of the console that are shown when a guest ends too soon.
const SHOWN_LINES: usize = 40;

/// The guest's first process. The kernel's own messages stay in its log: on the console they would stand in sections.
const INIT: &str = "\
#!/bin/sh
export PATH=/bin HOME=/tmp LC_ALL=C
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
dmesg -n 1
stty -onlcr < /dev/console 2> /dev/null
# The firmware and the kernel end in the middle of a line.
echo
. /lib/leakscope.sh
. /script.sh
echo @@DONE
reboot -f
";

const FUNCTIONS: &str = "\
section() {
    section_name=$1
    shift
    echo \"@@BEGIN $section_name\"
    \"$@\" 2>&1
    section_code=$?
    echo
    echo \"@@END $section_name $section_code\"
}
keep() { section \"$1\" base64 \"$2\"; }
";

/// What a command printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    /// Its output.
    pub(crate) text: String,
    /// Its exit code.
    pub(crate) code: i32,
}

/// What a guest printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sections {
    by_name: BTreeMap<String, Section>,
    /// Everything.
    pub(crate) console: String,
}

impl Sections {
    /// The section of a name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get(&self, name: &str) -> Result<&Section> {
        self.by_name.get(name).with_context(|| format!("the guest printed no section `{name}`"))
    }

    /// The output of a command that must have ended with this code.
    ///
    /// # Errors
    /// There is none, or it ended otherwise.
    pub(crate) fn text(&self, name: &str, code: i32) -> Result<&str> {
        let section = self.get(name)?;
        if section.code != code {
            bail!("{name} ended with {} instead of {code}: {}", section.code, section.text);
        }
        Ok(&section.text)
    }

    fn parse(console: &str) -> Self {
        let mut sections = Self { by_name: BTreeMap::new(), console: console.to_owned() };
        let mut open: Option<(String, String)> = None;
        for line in console.lines() {
            if let Some(name) = line.strip_prefix("@@BEGIN ") {
                open = Some((name.to_owned(), String::new()));
            } else if let Some(rest) = line.strip_prefix("@@END ") {
                let (Some((name, mut text)), Some((_, code))) = (open.take(), rest.rsplit_once(' ')) else { continue };
                // The newline that stands before every end.
                text.pop();
                sections.by_name.insert(name, Section { text, code: code.parse().unwrap_or(-1) });
            } else if let Some((_, text)) = &mut open {
                text.push_str(line);
                text.push('\n');
            }
        }
        sections
    }
}

/// Boots a kernel, runs a script, and gives what it printed.
///
/// # Errors
/// The guest cannot be made, or does not come to the end of the script.
pub(crate) fn boot(
    kernel: &Kernel,
    script: &str,
    words: &str,
    files: fn(&Kernel, &Path) -> Result<()>,
) -> Result<Sections> {
    let scratch = tempfile::tempdir()?;
    let initramfs = initramfs(kernel, script, scratch.path(), files)?;
    // Under software emulation on a busy machine the timer may miss the kernel's look at it, which ends in a panic.
    let append = format!("console=ttyS0 quiet panic=-1 oops=panic no_timer_check rdinit=/init {words}");
    let run = Run::new("qemu-system-x86_64")
        .args(["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "768", "-nographic", "-no-reboot"])
        .args(["-nic", "none", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &append])
        .limit(LIMIT);
    let finished = run.finish()?;
    let console = String::from_utf8_lossy(&finished.stdout).replace('\r', "");
    if finished.ending != Ending::Exit(0) || !console.lines().any(|line| line == "@@DONE") {
        let lines: Vec<&str> = console.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("the guest did not come to its end ({:?}); its console: {end}\n{}", finished.ending, finished.stderr);
    }
    Ok(Sections::parse(&console))
}

/// Packs the guest's files.
fn initramfs(
    kernel: &Kernel,
    script: &str,
    scratch: &Path,
    files: fn(&Kernel, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let root = scratch.join("root");
    for folder in ["bin", "boot", "dev", "etc", "lib", "mod", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let busybox = busybox.context("no busybox; next: apt-get install busybox-static")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let list = Command::new(&busybox).arg("--list").output().context("start busybox")?;
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    program(&leakscope_bin(), &root.join("bin/leakscope"), &root)?;
    for entry in fs::read_dir(&kernel.modules)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "ko") {
            fs::copy(&path, root.join("mod").join(path.file_name().unwrap_or_default()))?;
        }
    }
    fs::copy(&kernel.config, root.join("boot").join(format!("config-{}", kernel.release)))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("init"), INIT)?;
    fs::write(root.join("lib/leakscope.sh"), FUNCTIONS)?;
    fs::write(root.join("script.sh"), script)?;
    files(kernel, &root)?;
    let packed = scratch.join("initramfs.gz");
    let shell = format!("chmod 755 init && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > '{}'", packed.display());
    let status = Command::new("sh").args(["-c", &shell]).current_dir(&root).status().context("start sh")?;
    if !status.success() {
        bail!("the guest's files cannot be packed: {status}");
    }
    Ok(packed)
}

/// Copies a program and the libraries that it loads, each to its own place.
fn program(from: &Path, to: &Path, root: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    let output = Command::new("ldd").arg(from).output().context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap_or(root))?;
        fs::copy(library, place).with_context(|| format!("copy {library}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_by_name() {
        let console = "boot\n@@BEGIN a b\none\ntwo\n\n@@END a b 3\nnoise\n@@BEGIN c\nopen\n@@DONE\n";
        let sections = Sections::parse(console);
        assert_eq!(sections.get("a b").unwrap(), &Section { text: "one\ntwo\n".into(), code: 3 });
        assert_eq!(sections.text("a b", 3).unwrap(), "one\ntwo\n");
        assert!(sections.text("a b", 0).is_err() && sections.get("c").is_err());
    }
}
