//! Other tracers of the kernel's allocations, and what they need to run beside ours: bcc's memleak, which compiles its
//! program against the kernel's headers when it starts, and bpftrace with the program that its users write for this.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where bpftrace and bcc look tracepoints up.
const TRACEFS: &str = "/sys/kernel/tracing";
/// Outstanding blocks by address, with size and stack: what `leaks` scripts for bpftrace do. It says when it is attached,
/// and prints no tables at its end.
const BPFTRACE: &str = "\
tracepoint:kmem:kmalloc { @size[(uint64)args->ptr] = args->bytes_alloc; @stack[(uint64)args->ptr] = kstack; }
tracepoint:kmem:kmem_cache_alloc { @size[(uint64)args->ptr] = args->bytes_alloc; @stack[(uint64)args->ptr] = kstack; }
tracepoint:kmem:kfree { delete(@size[(uint64)args->ptr]); delete(@stack[(uint64)args->ptr]); }
tracepoint:kmem:kmem_cache_free { delete(@size[(uint64)args->ptr]); delete(@stack[(uint64)args->ptr]); }
tracepoint:kmem:mm_page_alloc { @size[(uint64)args->pfn] = 4096 << args->order; @stack[(uint64)args->pfn] = kstack; }
tracepoint:kmem:mm_page_free { delete(@size[(uint64)args->pfn]); delete(@stack[(uint64)args->pfn]); }
interval:ms:200 { if (!@said) { printf(\"attached\\n\"); @said = 1; } }
END { clear(@size); clear(@stack); clear(@said); }
";

/// What the peers need, as long as it lives.
pub(super) struct Peers {
    headers: Option<PathBuf>,
    program: PathBuf,
    has_mounted: bool,
}

impl Peers {
    /// Mounts tracefs if nobody has, and puts the headers together.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn prepare(scratch: &Path) -> Result<Self> {
        let has_mounted = !Path::new(TRACEFS).join("events").exists()
            && Command::new("mount")
                .args(["-t", "tracefs", "none", TRACEFS])
                .status()
                .is_ok_and(|status| status.success());
        let program = scratch.join("leaks.bt");
        std::fs::write(&program, BPFTRACE).with_context(|| format!("write {}", program.display()))?;
        Ok(Self { headers: headers(scratch)?, program, has_mounted })
    }

    /// bcc's memleak, and the words that it prints when it is attached.
    pub(super) fn memleak(&self) -> (Command, &'static str) {
        let mut command = Command::new("memleak-bpfcc");
        command.args(["-o", "1000", "1000"]).env("PYTHONUNBUFFERED", "1");
        if let Some(headers) = &self.headers {
            command.env("BCC_KERNEL_SOURCE", headers);
        }
        (command, "Attaching")
    }

    /// bpftrace with room for as many blocks as ours, and the words that it prints when it is attached.
    pub(super) fn bpftrace(&self) -> (Command, &'static str) {
        let mut command = Command::new("bpftrace");
        command.args(["-B", "line"]).arg(&self.program).env("BPFTRACE_MAP_KEYS_MAX", "1048576");
        (command, "attached")
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if self.has_mounted {
            let _ = Command::new("umount").arg(TRACEFS).status();
        }
    }
}

/// Debian has the headers of a kernel in two folders, and bcc takes one. Its memleak needs types and helpers of them only,
/// the same in each kernel: arguments it takes from tracefs. So those of any kernel will do, where the running one has none.
fn headers(scratch: &Path) -> Result<Option<PathBuf>> {
    let folders = std::fs::read_dir("/usr/src").map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let folders: Vec<PathBuf> = folders.unwrap_or_default();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let common =
        folders.iter().find(|path| name(path).starts_with("linux-headers-") && name(path).ends_with("-common"));
    let Some(common) = common else { return Ok(None) };
    let stem = name(common).trim_end_matches("common").to_owned();
    let own = folders.iter().find(|path| *path != common && name(path).starts_with(&stem));
    let Some(own) = own else { return Ok(None) };
    let merged = scratch.join("headers");
    std::fs::create_dir_all(&merged).with_context(|| format!("create {}", merged.display()))?;
    for folder in [common, own] {
        for part in ["include", "arch"] {
            // Links to the files; what the first has stays.
            let status =
                Command::new("cp").arg("-rsn").arg(folder.join(part)).arg(&merged).status().context("start cp")?;
            ensure!(status.success(), "cannot link {}/{part}", folder.display());
        }
    }
    Ok(Some(merged))
}
