//! `blockbt-ctl`'s command line, from which help, completions and man pages come.
//!
//! Refuses to know what a verb does; it turns words into a checked [`Request`].
//! Invariant: help does not depend on the terminal or the environment, as it is pinned in golden files.

use crate::front::config::{NO_NODES, host_port};
use crate::ids::ImageName;
use crate::service::{self, MakeFs, Mode, NewSize, Request};
use crate::units::{Bytes, ChunkSize, UnitError, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps container and VM disks as chains of thin delta files and moves them between hosts with BitTorrent.
#[derive(Debug, Parser)]
#[command(
    name = "blockbt-ctl",
    version,
    term_width = 100,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(after_help = TOUR)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const TOUR: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 in use, 5 damaged.

A first round:
  blockbt-ctl import debian ./rootfs
  blockbt-ctl clone debian web
  blockbt-ctl mount web /mnt
  blockbt-ctl umount web
  blockbt-ctl commit web
  blockbt-ctl publish web";

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The store [default: /var/lib/blockbt]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "BLOCKBT_ROOT",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub root: Option<PathBuf>,
    /// Settings file [default: /etc/blockbt/config.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BLOCKBT_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,
    /// Ask the daemon at this socket, and nobody else
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "BLOCKBT_SOCKET",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    #[arg(conflicts_with = "no_daemon")]
    pub socket: Option<PathBuf>,
    /// Work on the store itself, even where its daemon runs
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_daemon: bool,
    /// As blockbtd's, for a command that works on the store itself
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "SIZE",
        env = "BLOCKBT_FREE_MARGIN",
        hide_env_values = true
    )]
    pub free_margin: Option<String>,
    /// Print JSON, one object per line
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// No progress, and no result but with --json
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an empty image
    #[command(after_help = "Examples:\n  blockbt-ctl create data --size 20G\n  blockbt-ctl create raw --size 1T --fs none")]
    Create {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Size of the disk, as in 10G; it takes only what is written
        #[arg(long, value_name = "SIZE", value_parser = disk_size)]
        size: Bytes,
        /// File system to make on it
        #[arg(long, value_enum, default_value_t = Fs::Ext4)]
        fs: Fs,
        #[command(flatten)]
        room: Room,
    },
    /// Make an image from a directory, a tar archive or a raw disk
    #[command(
        after_help = "The source is told by what is in it: a directory, a tar archive (plain, gzip, zstd or xz) or a raw disk (any other file not called .tar or the like). Directories and archives go into a new ext4.\n\n\
                     Examples:\n  blockbt-ctl import debian ./rootfs\n  blockbt-ctl import alpine alpine.tar.gz --size 2G\n  \
                     blockbt-ctl import vm disk.raw"
    )]
    Import {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// What goes into it
        #[arg(value_name = "DIR|FILE")]
        source: PathBuf,
        /// Size of the disk [default: 10G; of a raw disk, its own]
        #[arg(long, value_name = "SIZE", value_parser = disk_size)]
        size: Option<Bytes>,
    },
    /// Make an image that shares all sealed deltas of another
    #[command(
        after_help = "Takes no space and milliseconds, whatever the size. What is in SOURCE's head is not part of the clone: commit it first.\n\nExample:\n  blockbt-ctl clone debian web"
    )]
    Clone {
        /// The image that is there
        #[arg(value_name = "SOURCE")]
        source: ImageName,
        /// The new one
        #[arg(value_name = "TARGET")]
        target: ImageName,
        #[command(flatten)]
        room: Room,
    },
    /// Attach an image and mount its file system
    #[command(after_help = "Examples:\n  blockbt-ctl mount web /mnt\n  blockbt-ctl mount web --read-only")]
    Mount {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// An empty directory [default: one below /run/blockbt, printed]
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Nothing can be written
        #[arg(long)]
        read_only: bool,
        /// How to make the block device [default: flat where the kernel has device-mapper, else user]
        #[arg(long, value_enum)]
        mode: Option<AttachMode>,
        #[command(flatten)]
        room: Room,
    },
    /// Unmount an image's file system and detach it
    #[command(after_help = "Example:\n  blockbt-ctl umount web")]
    Umount {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
    },
    /// Make an image's block device
    #[command(after_help = "Example:\n  blockbt-ctl attach web")]
    Attach {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Nothing can be written
        #[arg(long)]
        read_only: bool,
        /// How to make the block device [default: flat where the kernel has device-mapper, else user]
        #[arg(long, value_enum)]
        mode: Option<AttachMode>,
        #[command(flatten)]
        room: Room,
    },
    /// Remove an image's block device
    #[command(after_help = "Example:\n  blockbt-ctl detach web")]
    Detach {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
    },
    /// Seal what was written to an image into a new delta
    #[command(after_help = "The image must not be attached.\n\nExample:\n  blockbt-ctl commit web --message 'perl added'")]
    Commit {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Text for the image's history
        #[arg(short, long, value_name = "TEXT")]
        message: Option<String>,
        /// Chunk size of the delta, 4K to 1M [default: 4K; of a first one, 64K]
        #[arg(long, value_name = "SIZE", value_parser = chunk_size)]
        chunk_size: Option<Bytes>,
    },
    /// Make an image's disk, and the file system on it, larger or smaller
    #[command(
        after_help = "The image must not be attached; only a limit can be raised while it is mounted by device-mapper. ext4 grows and shrinks, down to what is in it; xfs grows. \
                     One that was interrupted leaves the old or the new size, and is finished by the same command again. What is said of size and head is done together, or none of it.\n\n\
                     Examples:\n  blockbt-ctl resize web 20G\n  blockbt-ctl resize web +5G --limit 8G\n  blockbt-ctl resize web -5G\n  blockbt-ctl resize raw 1G --shrink\n  \
                     blockbt-ctl resize web --limit none --reserve"
    )]
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["size", "limit", "reserve", "no_reserve"])))]
    #[command(override_usage = "blockbt-ctl resize [OPTIONS] <NAME> [SIZE]")]
    Resize {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Size of the disk, as in 20G, or how much more or less, as in +5G
        #[arg(value_name = "SIZE", value_parser = NewSize::parse, allow_hyphen_values = true)]
        size: Option<NewSize>,
        /// The most that what is written may take until it is committed; none: as much as the disk is large
        #[arg(long, value_name = "SIZE|none", value_parser = Limit::parse)]
        limit: Option<Limit>,
        /// Take all of that space now, so that it is there whatever else fills the host's disk
        #[arg(long)]
        reserve: bool,
        /// Take space as it is written, and give back what is not used
        #[arg(long, conflicts_with = "reserve")]
        no_reserve: bool,
        /// Cut off the end of a disk whose file system is not known; what is there is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Make all sealed deltas of an image into one
    #[command(
        after_help = "A long chain takes longer to attach: each delta costs a loop device. The image must not be attached; what it shows stays the same, and no other image is touched. The old deltas stay until gc, or for as long as another image has them.\n\n\
                     Examples:\n  blockbt-ctl flatten web\n  blockbt-ctl flatten web --keep 2"
    )]
    Flatten {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Leave the newest N deltas as they are
        #[arg(long, value_name = "N", default_value_t = 0)]
        keep: usize,
    },
    /// List the disk ranges that differ
    #[command(
        after_help = "With one image: what its head has changed since the last commit or, where it has none, what its newest delta changed.\n\n\
                     Examples:\n  blockbt-ctl diff web\n  blockbt-ctl diff debian web --json"
    )]
    Diff {
        /// An image
        #[arg(value_name = "A")]
        a: ImageName,
        /// Another, to compare it with
        #[arg(value_name = "B")]
        b: Option<ImageName>,
    },
    /// Write an image to a tar archive or a raw disk
    #[command(after_help = "Examples:\n  blockbt-ctl export web web.tar\n  blockbt-ctl export web web.raw")]
    Export {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Its ending says what it becomes
        #[arg(value_name = "FILE.tar|FILE.raw")]
        target: PathBuf,
    },
    /// Show all about one image
    #[command(after_help = "Example:\n  blockbt-ctl info web")]
    Info {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// With the device-mapper tables that it stands on, as dmsetup takes them
        #[arg(long)]
        dm: bool,
    },
    /// List the images
    #[command(after_help = "Example:\n  blockbt-ctl list --json")]
    List,
    /// Show which delta is on top of which, and their images
    #[command(after_help = "Example:\n  blockbt-ctl tree")]
    Tree,
    /// Read and verify everything of an image or of the store
    #[command(after_help = "Exit code 5 when anything is damaged, and was not repaired.\n\n\
                     Examples:\n  blockbt-ctl check web\n  blockbt-ctl check --all\n  blockbt-ctl check --rebuild\n  blockbt-ctl check web --repair")]
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["name", "all", "rebuild", "repair"])))]
    Check {
        /// One image
        #[arg(value_name = "NAME", conflicts_with = "all")]
        name: Option<ImageName>,
        /// All images and objects of the store
        #[arg(long)]
        all: bool,
        /// Make the catalogue anew from the files; without a NAME this checks the whole store
        #[arg(long)]
        rebuild: bool,
        /// Bring back heads that the kernel gave up, as when the host's disk was full, if all of their data is there; of images that are not attached
        #[arg(long)]
        repair: bool,
    },
    /// Give an image another name
    #[command(after_help = "Example:\n  blockbt-ctl rename web web-old")]
    Rename {
        /// Its name
        #[arg(value_name = "FROM")]
        from: ImageName,
        /// Its new name, which nobody has yet
        #[arg(value_name = "TO")]
        to: ImageName,
    },
    /// Remove an image; its deltas stay until gc
    #[command(after_help = "Examples:\n  blockbt-ctl rm web\n  blockbt-ctl rm web --dry-run")]
    Rm {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove deltas that no image has, and what had come of pulls that were given up
    #[command(
        after_help = "A pull is given up when nothing has come to it for seven days; what had come is there for the same pull until then.\n\nExample:\n  blockbt-ctl gc --dry-run"
    )]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Offer an image's sealed deltas to other hosts, and print the link to it
    #[command(after_help = "The daemon serves it, as long as it runs.\n\nExample:\n  blockbt-ctl publish web")]
    Publish {
        /// The image
        #[arg(value_name = "NAME")]
        name: ImageName,
    },
    /// Fetch a published image
    #[command(
        after_help = "Deltas that are here already are not fetched; a pull that was interrupted goes on where it was.\n\n\
                     Example:\n  blockbt-ctl pull 'magnet:?xt=urn:btih:...&x.bbt=...' --name web"
    )]
    Pull {
        /// As `publish` printed it
        #[arg(value_name = "LINK")]
        link: String,
        /// Name of the image here [default: its name there]
        #[arg(long, value_name = "NAME")]
        name: Option<ImageName>,
        /// A DHT node to ask as well; can be repeated
        #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
        bootstrap: Vec<String>,
        /// Give up when nothing has come nearer for this many seconds [default: never]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
        timeout: Option<u64>,
        /// Take a link without x.bbt: nothing but SHA-1 vouches for the image then
        #[arg(long)]
        insecure_sha1: bool,
    },
    /// List who is connected, per delta: how found, and what went over
    #[command(after_help = "Example:\n  blockbt-ctl peers")]
    Peers,
    /// Print a shell's completions
    #[command(after_help = "Example:\n  blockbt-ctl completions bash > /usr/share/bash-completion/completions/blockbt-ctl")]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the man pages
    #[command(hide = true)]
    Man {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Of a head that is there.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    None,
    Bytes(Bytes),
}

impl Limit {
    fn parse(text: &str) -> Result<Limit, UnitError> {
        match text {
            "none" => Ok(Limit::None),
            size => parse_size(size).map(Limit::Bytes),
        }
    }
}

/// Of a head that is made.
#[derive(Clone, Copy, Debug, Args)]
pub struct Room {
    /// The most space that what is written to the image may take [default: as much as the disk is large]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub limit: Option<Bytes>,
    /// Take all of that space now, so that it is there whatever else fills the host's disk
    #[arg(long)]
    pub reserve: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fs {
    Ext4,
    Xfs,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// One device-mapper table for the whole chain
    Flat,
    /// One dm-snapshot per delta, at most eight
    Stack,
    /// A FUSE server of our own below a loop device
    User,
}

/// What a command line asks for.
pub enum Asked {
    Verb(Request),
    Completions(clap_complete::Shell),
    Man(PathBuf),
}

impl Command {
    /// Makes relative paths absolute, as the daemon works elsewhere.
    pub fn asked(self) -> io::Result<Asked> {
        let absolute = |path: PathBuf| std::path::absolute(path);
        Ok(Asked::Verb(match self {
            Command::Create { name, size, fs, room } => Request::Create(service::Create {
                name,
                size_bytes: size,
                fs: fs.into(),
                limit_bytes: room.limit,
                reserve: room.reserve,
            }),
            Command::Import { name, source, size } => Request::Import(service::Import {
                name,
                source: absolute(source)?,
                size_bytes: size,
            }),
            Command::Clone { source, target, room } => Request::Clone(service::Clone {
                source,
                target,
                limit_bytes: room.limit,
                reserve: room.reserve,
            }),
            Command::Mount {
                name,
                dir,
                read_only,
                mode,
                room,
            } => Request::Mount(service::Mount {
                name,
                dir: dir.map(absolute).transpose()?,
                read_only,
                mode: mode.map(Mode::from),
                limit_bytes: room.limit,
                reserve: room.reserve,
            }),
            Command::Umount { name } => Request::Umount(service::Umount { name }),
            Command::Attach {
                name,
                read_only,
                mode,
                room,
            } => Request::Attach(service::Attach {
                name,
                read_only,
                mode: mode.map(Mode::from),
                limit_bytes: room.limit,
                reserve: room.reserve,
            }),
            Command::Detach { name } => Request::Detach(service::Detach { name }),
            Command::Commit { name, message, chunk_size } => Request::Commit(service::Commit {
                name,
                message,
                chunk_size_bytes: chunk_size,
            }),
            Command::Resize {
                name,
                size,
                limit,
                reserve,
                no_reserve,
                shrink,
            } => Request::Resize(service::Resize {
                name,
                size,
                limit_bytes: limit.and_then(|limit| match limit {
                    Limit::Bytes(bytes) => Some(bytes),
                    Limit::None => None,
                }),
                no_limit: matches!(limit, Some(Limit::None)),
                reserve: (reserve || no_reserve).then_some(reserve),
                shrink,
            }),
            Command::Flatten { name, keep } => Request::Flatten(service::Flatten { name, keep }),
            Command::Diff { a, b } => Request::Diff(service::Diff { a, b }),
            Command::Export { name, target } => Request::Export(service::Export {
                name,
                target: absolute(target)?,
            }),
            Command::Info { name, dm } => Request::Info(service::Info { name, dm }),
            Command::List => Request::List(service::List {}),
            Command::Tree => Request::Tree(service::Tree {}),
            Command::Check {
                name,
                all: _,
                rebuild,
                repair,
            } => Request::Check(service::Check { name, rebuild, repair }),
            Command::Rename { from, to } => Request::Rename(service::Rename { from, to }),
            Command::Rm { name, dry_run } => Request::Rm(service::Rm { name, dry_run }),
            Command::Gc { dry_run } => Request::Gc(service::Gc { dry_run }),
            Command::Publish { name } => Request::Publish(service::Publish { name }),
            Command::Pull {
                link,
                name,
                mut bootstrap,
                timeout,
                insecure_sha1,
            } => {
                bootstrap.retain(|node| node != NO_NODES);
                let timeout_ms = timeout.map(|seconds| Duration::from_secs(seconds).as_millis() as u64);
                Request::Pull(service::Pull {
                    link,
                    name,
                    bootstrap,
                    timeout_ms,
                    insecure_sha1,
                })
            }
            Command::Peers => Request::Peers(service::Peers {}),
            Command::Completions { shell } => return Ok(Asked::Completions(shell)),
            Command::Man { dir } => return Ok(Asked::Man(dir)),
        }))
    }
}

impl From<AttachMode> for Mode {
    fn from(mode: AttachMode) -> Mode {
        match mode {
            AttachMode::Flat => Mode::Flat,
            AttachMode::Stack => Mode::Stack,
            AttachMode::User => Mode::User,
        }
    }
}

impl From<Fs> for MakeFs {
    fn from(fs: Fs) -> MakeFs {
        match fs {
            Fs::Ext4 => MakeFs::Ext4,
            Fs::Xfs => MakeFs::Xfs,
            Fs::None => MakeFs::None,
        }
    }
}

fn disk_size(text: &str) -> Result<Bytes, UnitError> {
    parse_size(text)?.as_disk_size()
}

fn chunk_size(text: &str) -> Result<Bytes, UnitError> {
    ChunkSize::new(parse_size(text)?).map(ChunkSize::bytes)
}
