//! How the running kernel was built, from wherever its configuration was left.

use std::collections::HashMap;
use std::io::Read;

use crate::Places;

/// A configuration is some hundred thousand bytes; more is none.
const MOST_BYTES: u64 = 8 << 20;

/// The options of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelConfig {
    options: HashMap<String, String>,
    /// The file that it was read from; empty when there was none.
    pub source: String,
}

impl KernelConfig {
    /// The configuration in a text; lines that are none are passed over.
    pub fn decode(text: &str, source: &str) -> Self {
        let option = |line: &str| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            Some((name.to_owned(), value.trim().trim_matches('"').to_owned()))
        };
        Self { options: text.lines().filter_map(option).collect(), source: source.to_owned() }
    }

    /// The configuration of the kernel `release`; empty when it was left nowhere.
    pub fn read(places: &Places, release: &str) -> Self {
        let texts = [
            "/proc/config.gz".to_owned(),
            format!("/boot/config-{release}"),
            format!("/lib/modules/{release}/config"),
            format!("/usr/lib/modules/{release}/config"),
            format!("/lib/modules/{release}/build/.config"),
            format!("/usr/src/linux-headers-{release}/.config"),
        ];
        let found = texts.iter().find_map(|place| {
            let mut bytes = Vec::new();
            std::fs::File::open(places.path(place)).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&bytes[..]).take(MOST_BYTES).read_to_end(&mut plain).ok()?;
                bytes = plain;
            }
            let config = Self::decode(&String::from_utf8_lossy(&bytes), place);
            (!config.options.is_empty()).then_some(config)
        });
        found.unwrap_or_default()
    }

    /// Whether there was one.
    pub fn is_known(&self) -> bool {
        !self.options.is_empty()
    }

    /// The value of an option, named without `CONFIG_`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Whether an option is built in or a module; `None` when there is no configuration.
    pub fn has(&self, name: &str) -> Option<bool> {
        self.is_known().then(|| self.get(name).is_some_and(|value| value == "y" || value == "m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_by_table() {
        let text = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_HZ=250\nCONFIG_S=\"a b\"\nnoise\nCONFIG_M=m\n";
        let config = KernelConfig::decode(text, "x");
        assert_eq!((config.has("A"), config.has("B"), config.has("M")), (Some(false), Some(true), Some(true)));
        assert_eq!((config.get("HZ"), config.get("S")), (Some("250"), Some("a b")));
        assert_eq!(KernelConfig::default().has("B"), None);
    }

    #[test]
    fn the_first_that_is_there_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("boot")).unwrap();
        std::fs::write(folder.path().join("boot/config-1"), "CONFIG_X=y\n").unwrap();
        let places = Places::below(folder.path());
        assert_eq!(KernelConfig::read(&places, "1").source, "/boot/config-1");
        assert!(!KernelConfig::read(&places, "2").is_known());
        std::fs::create_dir_all(folder.path().join("proc")).unwrap();
        std::fs::write(folder.path().join("proc/config.gz"), b"\x1f\x8bdamaged").unwrap();
        assert_eq!(KernelConfig::read(&places, "1").source, "/boot/config-1");
    }
}
