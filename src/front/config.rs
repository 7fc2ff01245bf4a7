//! Settings: flags over `BLOCKBT_*` over the settings file over defaults, merged once into one [`Settings`].
//!
//! Refuses to know where flags and environment were read (clap has merged those two already).
//! Invariant: what is not understood is an error with file and key, never skipped.

use crate::service::{Bootstrap, Settings};
use crate::units::{Bytes, UnitError, parse_size};
use serde::Deserialize;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub const DEFAULT_FILE: &str = "/etc/blockbt/config.toml";
pub const DEFAULT_ROOT: &str = "/var/lib/blockbt";
pub const DEFAULT_LISTEN: &str = "0.0.0.0:6981";
pub const DEFAULT_LOG: &str = "warn,blockbt=info";
/// The word that stands for an empty list of bootstrap nodes.
pub const NO_NODES: &str = "none";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("settings file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// toml's own text is a drawing of several lines.
    #[error("settings file {}, line {line}: {why}", path.display())]
    Parse { path: PathBuf, line: usize, why: String },
    #[error("settings file {}, key {key}: {why}", path.display())]
    Value { path: PathBuf, key: &'static str, why: String },
    #[error("root {}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("free margin")]
    Margin(#[from] UnitError),
}

/// One source of settings; a later one overrides field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub root: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub dht_listen: Option<SocketAddr>,
    pub bootstrap: Option<Vec<String>>,
    pub dht: Option<bool>,
    /// A size as people write it.
    pub free_margin: Option<String>,
    pub log: Option<String>,
}

/// The merged settings of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub settings: Settings,
    pub log: String,
}

impl Layer {
    /// Reads a settings file. A missing one is an empty one, unless it was asked for by name.
    pub fn read(path: &Path, must_exist: bool) -> Result<Layer, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(Layer::default()),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        let layer: Layer = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Parse {
                path: path.into(),
                line: before.matches('\n').count() + 1,
                why: error.message().into(),
            }
        })?;
        let bad = |key, why| ConfigError::Value {
            path: path.into(),
            key,
            why,
        };
        for node in layer.bootstrap.iter().flatten() {
            host_port(node).map_err(|why| bad("bootstrap", why))?;
        }
        if layer.root.as_ref().is_some_and(|root| !root.is_absolute()) {
            return Err(bad("root", "want an absolute path".into()));
        }
        layer.margin().map_err(|error| bad("free_margin", error.to_string()))?;
        Ok(layer)
    }

    /// This layer where it says something, `under` elsewhere.
    pub fn over(self, under: Layer) -> Layer {
        Layer {
            root: self.root.or(under.root),
            listen: self.listen.or(under.listen),
            dht_listen: self.dht_listen.or(under.dht_listen),
            bootstrap: self.bootstrap.or(under.bootstrap),
            dht: self.dht.or(under.dht),
            free_margin: self.free_margin.or(under.free_margin),
            log: self.log.or(under.log),
        }
    }

    fn margin(&self) -> Result<Option<Bytes>, UnitError> {
        self.free_margin.as_deref().map(parse_size).transpose()
    }

    /// Fills in the defaults.
    pub fn finish(self) -> Result<Config, ConfigError> {
        let free_margin = self.margin()?;
        let root = self.root.unwrap_or_else(|| DEFAULT_ROOT.into());
        let root = std::path::absolute(&root).map_err(|source| ConfigError::Root { path: root, source })?;
        let listen = self
            .listen
            .unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("the default address is one"));
        let dht_listen = self.dht_listen.unwrap_or(listen);
        let bootstrap = match self.bootstrap {
            None => Bootstrap::Public,
            Some(nodes) => Bootstrap::Nodes(nodes.into_iter().filter(|node| node != NO_NODES).collect()),
        };
        let dht_listen = self.dht.unwrap_or(true).then_some(dht_listen);
        Ok(Config {
            settings: Settings {
                root,
                listen,
                dht_listen,
                bootstrap,
                free_margin,
            },
            log: self.log.unwrap_or_else(|| DEFAULT_LOG.into()),
        })
    }
}

/// Checks `HOST:PORT`, or the word `none`; returns it.
pub fn host_port(text: &str) -> Result<String, String> {
    let port = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0);
    match text == NO_NODES || text.rsplit_once(':').is_some_and(port) {
        true => Ok(text.into()),
        false => Err(format!("\"{}\": want HOST:PORT", crate::ids::clip(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    fn read(text: &str) -> Result<Layer, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Layer::read(&path, true)
    }

    #[test]
    fn flags_go_over_the_file_and_the_file_over_defaults() {
        let file = read("root = \"/srv/b\"\nlisten = \"127.0.0.1:1\"\nbootstrap = [\"a:1\"]\n").unwrap();
        let flags = Layer {
            root: Some("/x".into()),
            ..Layer::default()
        };
        let config = flags.over(file).finish().unwrap();
        assert_eq!(config.settings.root, Path::new("/x"));
        assert_eq!(config.settings.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(config.settings.dht_listen, Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(config.settings.bootstrap, Bootstrap::Nodes(vec!["a:1".into()]));
        assert_eq!(config.log, DEFAULT_LOG);
    }

    #[test]
    fn nothing_said_is_the_public_network() {
        let settings = Layer::default().finish().unwrap().settings;
        assert_eq!(settings.root, Path::new("/var/lib/blockbt"));
        assert_eq!(settings.listen.to_string(), "0.0.0.0:6981");
        assert_eq!(settings.bootstrap, Bootstrap::Public);
    }

    #[test]
    fn none_is_a_list_without_nodes_and_dht_can_be_off() {
        let layer = Layer {
            bootstrap: Some(vec!["none".into()]),
            dht: Some(false),
            ..Layer::default()
        };
        let settings = layer.finish().unwrap().settings;
        assert_eq!((settings.bootstrap, settings.dht_listen), (Bootstrap::Nodes(vec![]), None));
    }

    #[test]
    fn what_a_file_gets_wrong_is_said_with_file_and_key() {
        for (text, want) in [
            ("rooot = \"/x\"", "line 2: unknown field `rooot`"),
            ("listen = \"here\"", "line 2: "),
            ("bootstrap = [\"nowhere\"]", "bootstrap"),
            ("root = \"x\"", "root"),
            ("dht = 3", "line 2: "),
            ("free_margin = \"much\"", "free_margin"),
        ] {
            let error = read(&format!("# settings\n{text}")).unwrap_err();
            let shown = format!("{error}: {}", error.source().map(|cause| cause.to_string()).unwrap_or_default());
            assert!(shown.contains("config.toml") && shown.contains(want), "{text}: {shown}");
        }
    }

    #[test]
    fn a_missing_file_matters_only_when_it_was_named() {
        let path = Path::new("/nonexistent/config.toml");
        assert_eq!(Layer::read(path, false).unwrap(), Layer::default());
        assert!(Layer::read(path, true).is_err());
    }
}
