//! kmemleak's control file: whether it works, and its commands.
//!
//! Source: Linux `mm/kmemleak.c`, `kmemleak_write`: one command a write. `scan` returns when the scan is over. When
//! kmemleak is disabled every command but `clear` fails with EPERM, and an unknown one fails with EINVAL when it is not:
//! so an unknown command asks which, and changes nothing. `clear` of a disabled kmemleak would throw its records away.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::config::KernelConfig;
use crate::kmsg::KernelLog;
use crate::mounts::read_mount;
use crate::{KernelError, Places};

/// No command of any version.
const QUESTION: &str = "?";
/// Bytes that are read of the dump at once.
const CHUNK: usize = 1 << 18;

/// kmemleak of the running kernel, which works.
#[derive(Debug)]
pub struct Kmemleak {
    file: PathBuf,
    places: Places,
}

/// The release of the running kernel, such as `6.12.0-amd64`.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

impl Kmemleak {
    /// Finds kmemleak.
    ///
    /// # Errors
    /// It is not there, does not work, or this user may not use it: which of these, and what to do.
    pub fn open(places: &Places) -> Result<Self, KernelError> {
        let release = release();
        let config = KernelConfig::read(places, &release);
        if config.has("DEBUG_KMEMLEAK") == Some(false) {
            return Err(KernelError::NotBuilt(release));
        }
        let Some(debugfs) = read_mount(places, "debugfs") else { return Err(KernelError::NoDebugfs) };
        let file = places.path(debugfs.join("kmemleak"));
        let found = Self { file, places: places.clone() };
        match found.write(QUESTION) {
            Ok(()) => Ok(found),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INVAL) => Ok(found),
                Some(Errno::PERM) if lockdown(places).is_some() => {
                    Err(KernelError::Lockdown(lockdown(places).unwrap_or_default()))
                }
                // Opening is refused to other users; what a disabled kmemleak refuses is the command.
                Some(Errno::ACCESS) => Err(KernelError::NotRoot(found.file)),
                Some(Errno::PERM) => Err(why_disabled(places, &config)),
                Some(Errno::NOENT) if !is_root() => Err(KernelError::NotRoot(found.file)),
                Some(Errno::NOENT) if config.is_known() => Err(why_disabled(places, &config)),
                Some(Errno::NOENT) => Err(KernelError::NotBuilt(release)),
                _ => Err(KernelError::Io("write to", found.file, error)),
            },
        }
    }

    fn write(&self, command: &str) -> io::Result<()> {
        // No O_TRUNC and no O_CREAT: where this is no file of the kernel, nothing may come of it.
        File::options().write(true).open(&self.file)?.write_all(command.as_bytes())
    }

    fn command(&self, command: &str) -> Result<(), KernelError> {
        self.write(command).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM) => why_disabled(&self.places, &KernelConfig::default()),
            _ => KernelError::Io("write a command to", self.file.clone(), error),
        })
    }

    /// Scans; returns when the scan is over.
    ///
    /// # Errors
    /// kmemleak has been disabled meanwhile, or the write fails.
    pub fn scan(&self) -> Result<(), KernelError> {
        self.command("scan")
    }

    /// Takes all that is reported now for no leak.
    ///
    /// # Errors
    /// As for [`Self::scan`].
    pub fn clear(&self) -> Result<(), KernelError> {
        self.command("clear")
    }

    /// Whether the stacks of tasks are roots.
    ///
    /// # Errors
    /// As for [`Self::scan`].
    pub fn set_stack(&self, on: bool) -> Result<(), KernelError> {
        self.command(if on { "stack=on" } else { "stack=off" })
    }

    /// How often kmemleak scans by itself; `None` for never.
    ///
    /// # Errors
    /// As for [`Self::scan`].
    pub fn set_auto_scan(&self, seconds: Option<u32>) -> Result<(), KernelError> {
        match seconds {
            None => self.command("scan=off"),
            Some(seconds) => self.command(&format!("scan={seconds}")),
        }
    }

    /// Switches kmemleak off until the next boot.
    ///
    /// # Errors
    /// As for [`Self::scan`].
    pub fn switch_off(&self) -> Result<(), KernelError> {
        self.command("off")
    }

    /// The dump, to be read.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_dump(&self) -> Result<BufReader<File>, KernelError> {
        let file = File::open(&self.file).map_err(|error| KernelError::Io("open", self.file.clone(), error))?;
        Ok(BufReader::with_capacity(CHUNK, file))
    }

    /// The control file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// What kmemleak writes into the kernel's log of the object that holds an address.
    ///
    /// # Errors
    /// There is no such object, or the log may not be read.
    pub fn dump_object(&self, address: u64) -> Result<Vec<String>, KernelError> {
        let log = PathBuf::from("/dev/kmsg");
        let mut kmsg = KernelLog::open_at_end(&self.places)
            .ok_or_else(|| KernelError::Io("read", log, io::Error::from(io::ErrorKind::PermissionDenied)))?;
        match self.write(&format!("dump={address:#x}")) {
            Ok(()) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                return Err(KernelError::NoObject(address));
            }
            Err(error) => return Err(KernelError::Io("write a command to", self.file.clone(), error)),
        }
        Ok(object_lines(&kmsg.read_new()))
    }
}

/// The lines of the log that are of the object: from its head to the end of its backtrace.
fn object_lines(texts: &[String]) -> Vec<String> {
    let is_head = |text: &str| crate::dump::without_prefix(text).starts_with("Object");
    let mut lines = Vec::new();
    for text in texts.iter().skip_while(|text| !is_head(text)) {
        let plain = crate::dump::without_prefix(text);
        // The backtrace is printed by the stack depot, without kmemleak's name and with one space.
        let belongs = lines.is_empty() || plain.starts_with(' ') && !is_head(plain);
        if !belongs {
            break;
        }
        lines.push(plain.to_owned());
    }
    lines
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The mode of lockdown, `None` when there is none.
pub fn lockdown(places: &Places) -> Option<String> {
    let text = places.read("/sys/kernel/security/lockdown")?;
    let (_, rest) = text.split_once('[')?;
    let mode = rest.split_once(']')?.0;
    (mode != "none").then(|| mode.to_owned())
}

/// Why kmemleak, which is built in, does not work.
pub fn why_disabled(places: &Places, config: &KernelConfig) -> KernelError {
    let words = places.read("/proc/cmdline").unwrap_or_default();
    let last = words.split_whitespace().rfind(|word| word.starts_with("kmemleak="));
    if last == Some("kmemleak=off") {
        return KernelError::OffAtBoot(Some("kmemleak=off"));
    }
    if last != Some("kmemleak=on") && config.has("DEBUG_KMEMLEAK_DEFAULT_OFF") == Some(true) {
        return KernelError::OffAtBoot(None);
    }
    let log = KernelLog::open(places).map(|mut log| log.read_new()).unwrap_or_default();
    KernelError::Disabled(disabling_words(&log))
}

/// The first of kmemleak's own words on its end.
fn disabling_words(log: &[String]) -> Option<String> {
    const CAUSES: [&str; 6] = [
        "Cannot allocate",
        "Cannot insert",
        "Memory pool empty",
        "Early log buffer exceeded",
        "Cannot allocate a scan",
        "Kernel memory leak detector disabled",
    ];
    let words = |cause: &&str| {
        log.iter()
            .find(|text| text.starts_with("kmemleak: ") && text.contains(*cause))
            .map(|text| text[10..].to_owned())
    };
    CAUSES.iter().find_map(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let places = Places::below(folder.path());
        (folder, places)
    }

    fn refusal(files: &[(&str, &str)]) -> String {
        let release = format!("boot/config-{}", release());
        let files: Vec<(&str, &str)> =
            files.iter().map(|&(path, text)| (if path == "config" { release.as_str() } else { path }, text)).collect();
        Kmemleak::open(&places(&files).1).unwrap_err().to_string()
    }

    const ON: (&str, &str) = ("config", "CONFIG_DEBUG_KMEMLEAK=y\n");
    const MOUNTED: (&str, &str) = ("proc/self/mounts", "none /sys/kernel/debug debugfs rw 0 0\n");

    #[test]
    fn each_refusal_says_what_to_do() {
        assert!(refusal(&[("config", "CONFIG_X=y\n"), MOUNTED]).contains("built without CONFIG_DEBUG_KMEMLEAK"));
        assert!(refusal(&[ON, ("proc/self/mounts", "")]).contains("mount -t debugfs none /sys/kernel/debug"));
        let off = ("proc/cmdline", "quiet kmemleak=on kmemleak=off\n");
        let missing = if is_root() { "booted with kmemleak=off" } else { "only root" };
        assert!(refusal(&[ON, MOUNTED, off]).contains(missing));
        let by_default = ("config", "CONFIG_DEBUG_KMEMLEAK=y\nCONFIG_DEBUG_KMEMLEAK_DEFAULT_OFF=y\n");
        let missing = if is_root() { "boot with kmemleak=on" } else { "only root" };
        assert!(refusal(&[by_default, MOUNTED]).contains(missing));
    }

    #[test]
    fn the_log_says_why_it_is_disabled() {
        let log = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let both = log(&[
            "x",
            "kmemleak: Kernel memory leak detector disabled",
            "kmemleak: Cannot allocate a kmemleak_object structure",
        ]);
        assert_eq!(disabling_words(&both).as_deref(), Some("Cannot allocate a kmemleak_object structure"));
        assert_eq!(disabling_words(&log(&["Cannot allocate"])), None);
        let disabled = KernelError::Disabled(disabling_words(&both));
        assert!(disabled.to_string().contains("until the next boot"));
    }

    #[test]
    fn an_object_in_the_log_ends_where_it_ends() {
        let texts = [
            "noise",
            "kmemleak: Object 0xff (size 8):",
            "kmemleak:   comm \"x\", pid 1, jiffies 2",
            " f+0x1/0x2",
            "next",
        ];
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(object_lines(&texts), ["Object 0xff (size 8):", "  comm \"x\", pid 1, jiffies 2", " f+0x1/0x2"]);
    }

    #[test]
    fn lockdown_by_mode() {
        let of = |text: &str| lockdown(&places(&[("sys/kernel/security/lockdown", text)]).1);
        assert_eq!(of("[none] integrity confidentiality\n"), None);
        assert_eq!(of("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(of(""), None);
    }
}
