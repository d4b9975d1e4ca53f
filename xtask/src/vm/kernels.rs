//! The kernels: two of our own, built from Debian's sources, and Debian's for clouds, of this release and of the one before;
//! and our modules for each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use leakscope_e2e::fixtures_dir;

use super::{cache, packages};
use crate::step::{first_line, step};

/// Architectures whose sources are not unpacked: half a minute less.
const OTHER_ARCHITECTURES: &[&str] = &[
    "alpha",
    "arc",
    "arm",
    "arm64",
    "csky",
    "hexagon",
    "loongarch",
    "m68k",
    "microblaze",
    "mips",
    "nios2",
    "openrisc",
    "parisc",
    "powerpc",
    "riscv",
    "s390",
    "sh",
    "sparc",
    "xtensa",
];

/// A file in the folder of a build that is complete.
const DONE: &str = "leakscope.done";

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Small, with kmemleak.
    Own,
    /// Smaller, with KASAN, and with what makes leak finders refuse: no BTF, a kmemleak that runs out of memory, lockdown.
    Kasan,
    /// Debian's `linux-image-cloud-amd64`.
    Stock,
    /// The same of the release before this machine's.
    Older,
}

/// Releases of Debian, and the one before each.
const RELEASES: [(&str, &str); 1] = [("bookworm", "bullseye")];

impl Which {
    /// All.
    pub(crate) const ALL: [Self; 4] = [Self::Own, Self::Kasan, Self::Stock, Self::Older];

    pub(super) fn of(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|which| which.name() == word);
        found.with_context(|| format!("no kernel `{word}`; there are own, kasan, stock and older"))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Kasan => "kasan",
            Self::Stock => "stock",
            Self::Older => "older",
        }
    }

    /// Whether there is such a kernel for this machine.
    pub(super) fn is_known(self) -> bool {
        self != Self::Older || older_release().is_ok()
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Which it is.
    pub(crate) which: Which,
    /// Its release.
    pub(crate) release: String,
    /// What the emulator boots.
    pub(crate) image: PathBuf,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// Our modules for it, with debug information.
    pub(crate) modules: PathBuf,
    /// The folder of its `vmlinux` and `System.map`, if it is one that we built.
    pub(crate) build: Option<PathBuf>,
}

/// Builds what is missing of a kernel.
///
/// # Errors
/// A build fails.
pub(super) fn prepare(which: Which) -> Result<Kernel> {
    match which {
        Which::Own | Which::Kasan => own(which),
        Which::Stock => stock(),
        Which::Older => older(),
    }
}

/// FNV-1a: a name for what a build was made from, no more.
fn hash(parts: &[&[u8]]) -> String {
    let mut value: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        value = (value ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{value:016x}")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: the path is not UTF-8", path.display()))
}

/// The archive of the newest sources that are installed.
fn archive() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/src")
        .context("read /usr/src")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("linux-source-") && name.ends_with(".tar.xz")
        })
        .collect();
    // 6.12 comes behind 6.1: by number, not by letter.
    let version = |path: &PathBuf| -> Vec<u32> {
        let name = path.to_string_lossy().into_owned();
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    found.sort_by_key(version);
    found.pop().with_context(|| format!("no sources in /usr/src; next: apt-get install {}", packages::SOURCES[0]))
}

/// The fragment of a configuration that a kernel of our own is built from.
fn fragment(which: Which) -> PathBuf {
    fixtures_dir().join(if which == Which::Kasan { "kernel/kasan.config" } else { "kernel/vm.config" })
}

/// What a kernel of our own is built from, as a name.
fn own_key(archive: &Path, fragment: &Path) -> Result<String> {
    let config = fs::read(fragment).with_context(|| format!("read {}", fragment.display()))?;
    let length = fs::metadata(archive)?.len().to_string();
    let compiler = first_line(&["gcc", "--version"]);
    Ok(hash(&[&config, text(archive)?.as_bytes(), length.as_bytes(), compiler.as_bytes()]))
}

/// Where a kernel is kept.
fn place(which: Which) -> Result<PathBuf> {
    let name = match which {
        Which::Stock => stock_package()?,
        Which::Older => format!("debian-{}", older_release()?.1),
        Which::Own | Which::Kasan => format!("{}-{}", which.name(), own_key(&archive()?, &fragment(which))?),
    };
    Ok(cache().join(name))
}

/// Whether booting needs no build of a kernel first.
pub(super) fn are_built() -> bool {
    let mut known = Which::ALL.into_iter().filter(|which| which.is_known());
    known.all(|which| place(which).is_ok_and(|place| place.join(DONE).exists()))
}

fn own(which: Which) -> Result<Kernel> {
    let (archive, fragment) = (archive()?, fragment(which));
    let build = place(which)?;
    if !build.join(DONE).exists() {
        build_own(&archive, &fragment, &build)?;
    }
    let release_file = build.join("include/config/kernel.release");
    let release = fs::read_to_string(&release_file).with_context(|| format!("read {}", release_file.display()))?;
    let modules = modules(&build, &own_key(&archive, &fragment)?)?;
    Ok(Kernel {
        which,
        release: release.trim().to_owned(),
        image: build.join("arch/x86/boot/bzImage"),
        config: build.join(".config"),
        modules,
        build: Some(build),
    })
}

/// The sources, unpacked.
fn source(archive: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache()).with_context(|| format!("create {}", cache().display()))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let source = cache().join(name.trim_end_matches(".tar.xz"));
    if !source.join("leakscope.unpacked").exists() {
        let _ = fs::remove_dir_all(&source);
        let mut words =
            vec!["tar".to_owned(), "-C".into(), text(&cache())?.into(), "-xf".into(), text(archive)?.into()];
        // Their Kconfig files are read all the same.
        let endings = ["c", "h", "S", "dts*"];
        let of_one = |name: &&str| endings.map(|ending| format!("--exclude=*/arch/{name}/*.{ending}"));
        words.extend(OTHER_ARCHITECTURES.iter().flat_map(of_one));
        words.push("--exclude=*/tools/testing/*".to_owned());
        step(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        fs::write(source.join("leakscope.unpacked"), "")?;
    }
    Ok(source)
}

/// Builds a kernel. A build that was stopped goes on where it stood: only one without the right configuration begins anew.
fn build_own(archive: &Path, fragment: &Path, build: &Path) -> Result<()> {
    let source = source(archive)?;
    let wanted = fs::read_to_string(fragment)?;
    let is_configured = |build: &Path| {
        fs::read_to_string(build.join(".config")).is_ok_and(|config| check_config(&wanted, &config).is_ok())
    };
    let (source, output) = (text(&source)?, format!("O={}", text(build)?));
    let make = ["make", "--silent", "-C", source, &output];
    if !is_configured(build) {
        let _ = fs::remove_dir_all(build);
        fs::create_dir_all(build)?;
        // tinyconfig, then ours over it: what a line of the fragment needs and does not get is an error below.
        step(&[&make[..], &["tinyconfig"]].concat())?;
        let config = fs::read_to_string(build.join(".config"))? + &wanted;
        fs::write(build.join(".config"), config)?;
        step(&[&make[..], &["olddefconfig"]].concat())?;
        check_config(&wanted, &fs::read_to_string(build.join(".config"))?)?;
    }
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(2, usize::from));
    step(&[&make[..], &[&jobs, "bzImage", "modules"]].concat())?;
    // Objects are two thirds of the tree, and no module needs them; those of the build's own tools stay.
    let kept = ["-not", "-path", "./scripts/*", "-not", "-path", "./tools/*"];
    let objects = ["(", "-name", "*.o", "-o", "-name", "*.a", "-o", "-name", ".*.cmd", "-o", "-name", ".tmp_*", ")"];
    let status = Command::new("find")
        .args([".", "-type", "f"])
        .args(kept)
        .args(objects)
        .arg("-delete")
        .current_dir(build)
        .status()
        .context("start find")?;
    if !status.success() {
        bail!("{}: find cannot delete the objects: {status}", build.display());
    }
    fs::write(build.join(DONE), "")?;
    Ok(())
}

/// Whether a configuration has what was asked for: an option that depends on a missing one goes silently.
fn check_config(wanted: &str, config: &str) -> Result<()> {
    let has = |line: &&str| config.lines().any(|other| other == *line);
    let missing: Vec<&str> =
        wanted.lines().filter(|line| line.starts_with("CONFIG_")).filter(|line| !has(line)).collect();
    if missing.is_empty() { Ok(()) } else { bail!("the kernel's configuration lacks {}", missing.join(", ")) }
}

/// Our modules, built for the kernel of a build folder.
fn modules(build: &Path, key: &str) -> Result<PathBuf> {
    let folder = fixtures_dir().join("kernel/modules");
    let mut sources: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("read {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.sort();
    let contents = sources.iter().map(fs::read).collect::<std::io::Result<Vec<_>>>()?;
    let parts: Vec<&[u8]> = contents.iter().map(Vec::as_slice).chain([key.as_bytes()]).collect();
    let place = cache().join(format!("modules-{}", hash(&parts)));
    if place.join(DONE).exists() {
        return Ok(place);
    }
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place)?;
    for source in &sources {
        fs::copy(source, place.join(source.file_name().unwrap_or_default()))?;
    }
    // Debian's headers name the compiler of their release.
    step(&["make", "--silent", "-C", text(build)?, &format!("M={}", text(&place)?), "CC=gcc", "modules"])?;
    fs::write(place.join(DONE), "")?;
    Ok(place)
}

/// The package of the kernel that `linux-image-cloud-amd64` means now.
fn stock_package() -> Result<String> {
    let output =
        Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output().context("start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.next().map(str::to_owned).context("apt knows no linux-image-cloud-amd64")
}

fn stock() -> Result<Kernel> {
    let package = stock_package()?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let place = cache().join(&package);
    if !place.join(DONE).exists() {
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place)?;
        // Unpacked, not installed: this machine's own boot is left alone.
        let shown = text(&place)?;
        step(&[
            "sh",
            "-c",
            &format!("cd '{shown}' && apt-get download --quiet {package} && dpkg-deb -x *.deb . && rm *.deb"),
        ])?;
        fs::write(place.join(DONE), "")?;
    }
    let headers = PathBuf::from(format!("/usr/src/linux-headers-{release}"));
    if !headers.exists() {
        bail!("{} is missing; next: apt-get install --only-upgrade linux-headers-cloud-amd64", headers.display());
    }
    of_debian(Which::Stock, release, &place, &headers)
}

/// A kernel that is unpacked in `place`, with our modules for it.
fn of_debian(which: Which, release: String, place: &Path, headers: &Path) -> Result<Kernel> {
    let modules = modules(headers, &release)?;
    Ok(Kernel {
        which,
        image: place.join(format!("boot/vmlinuz-{release}")),
        config: place.join(format!("boot/config-{release}")),
        release,
        modules,
        build: None,
    })
}

/// This machine's release of Debian, and the one before.
fn older_release() -> Result<(&'static str, &'static str)> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let found = RELEASES.into_iter().find(|(release, _)| *release == name);
    found.with_context(|| format!("no release of Debian before `{name}` is known here"))
}

fn older() -> Result<Kernel> {
    let (now, before) = older_release()?;
    let place = place(Which::Older)?;
    let named = place.join(DONE);
    if !named.exists() {
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place)?;
        eprintln!("\n{before}'s kernel for clouds, into {}", place.display());
        let output = Command::new("sh")
            .args(["-c", include_str!("fetch_older.sh"), "sh", text(&place)?, now, before])
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("start sh")?;
        if !output.status.success() {
            bail!("{before}'s kernel cannot be fetched: {}", output.status);
        }
        fs::write(&named, output.stdout)?;
    }
    let release = fs::read_to_string(&named)?.trim().to_owned();
    let headers = place.join(format!("usr/src/linux-headers-{release}"));
    of_debian(Which::Older, release, &place, &headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_went_is_noticed() {
        let wanted = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x\"\n";
        assert!(check_config(wanted, "CONFIG_A=y\nCONFIG_S=\"x\"\n").is_ok());
        let error = check_config(wanted, "# CONFIG_A is not set\nCONFIG_S=\"x\"\n").unwrap_err();
        assert!(error.to_string().ends_with("lacks CONFIG_A=y"));
    }

    #[test]
    fn names_of_builds_differ() {
        assert_ne!(hash(&[b"a", b"b"]), hash(&[b"ab", b""]));
        assert_eq!(hash(&[b"a"]), hash(&[b"a"]));
    }
}
