//! `blockbtd`'s command line.
//!
//! Refuses to know what the daemon does with it. Invariant: as `args`, help is the same everywhere.

use crate::front::config::{ConfigError, DEFAULT_FILE, Layer, host_port};
use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The blockbt daemon: seeds published images, finds peers, and answers `blockbt-ctl` on a Unix socket.
///
/// It may stop or die at any time: what is mounted stays mounted.
#[derive(Debug, Parser)]
#[command(
    name = "blockbtd",
    version,
    term_width = 100,
    max_term_width = 100,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true
)]
#[command(
    after_help = "Flags go over BLOCKBT_* variables, those over the settings file. Its keys: root, listen, dht_listen, bootstrap, dht, free_margin, log.\n\n\
                  Examples:\n  blockbtd\n  blockbtd --root /srv/blockbt --bootstrap dht.example.org:6981\n  \
                  blockbtd --listen 10.0.0.1:6981 --bootstrap none"
)]
pub struct Daemon {
    /// The store [default: /var/lib/blockbt]
    #[arg(long, value_name = "DIR", env = "BLOCKBT_ROOT", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// Settings file [default: /etc/blockbt/config.toml]
    #[arg(long, value_name = "FILE", env = "BLOCKBT_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Where BitTorrent peers connect (TCP) [default: 0.0.0.0:6981]
    #[arg(long, value_name = "IP:PORT", env = "BLOCKBT_LISTEN", hide_env_values = true)]
    pub listen: Option<SocketAddr>,
    /// Where the DHT node listens (UDP) [default: as --listen]
    #[arg(long, value_name = "IP:PORT", env = "BLOCKBT_DHT_LISTEN", hide_env_values = true)]
    pub dht_listen: Option<SocketAddr>,
    /// A DHT node to start from; can be repeated; "none": wait to be found [default: the public DHT's]
    #[arg(long, value_name = "HOST:PORT", env = "BLOCKBT_BOOTSTRAP", hide_env_values = true, value_delimiter = ',', value_parser = host_port)]
    pub bootstrap: Vec<String>,
    /// Neither ask the DHT nor answer in it
    #[arg(long, env = "BLOCKBT_NO_DHT", hide_env_values = true)]
    pub no_dht: bool,
    /// Warn, and refuse new heads that reserve nothing, when less is free on the store's disk [default: 1G, or 2 % of a smaller disk]
    #[arg(long, value_name = "SIZE", env = "BLOCKBT_FREE_MARGIN", hide_env_values = true)]
    pub free_margin: Option<String>,
    /// What to log, to stderr: error, warn, info, debug, trace, or a filter like blockbt::swarm=debug [default: warn,blockbt=info]
    #[arg(long, value_name = "FILTER", env = "BLOCKBT_LOG", hide_env_values = true)]
    pub log: Option<String>,
    #[command(subcommand)]
    pub hidden: Option<Hidden>,
}

#[derive(Debug, Subcommand)]
pub enum Hidden {
    /// Shows one image's disk as a FUSE file; started by `attach`, never by hand
    #[command(hide = true, disable_help_flag = true)]
    FuseServe {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

impl Daemon {
    pub fn layer(&self) -> Layer {
        Layer {
            root: self.root.clone(),
            listen: self.listen,
            dht_listen: self.dht_listen,
            bootstrap: (!self.bootstrap.is_empty()).then(|| self.bootstrap.clone()),
            dht: self.no_dht.then_some(false),
            free_margin: self.free_margin.clone(),
            log: self.log.clone(),
        }
    }
}

/// The settings file's layer: `named`, or the default file if it is there.
pub fn file_layer(named: Option<&Path>) -> Result<Layer, ConfigError> {
    Layer::read(named.unwrap_or(Path::new(DEFAULT_FILE)), named.is_some())
}
