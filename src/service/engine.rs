//! A store that is open for requests: one method per verb, found by one `match`.
//!
//! Refuses to know who asks, and how progress and replies are shown. Invariant: the catalogue is told after the files have changed and before
//! the journal forgets, so that whatever happens in between, the next opener knows that it must index again.

use super::{Backend, ErrorKind, Handler, Progress, Reply, Request, Role, ServiceError, Settings};
use crate::attach;
use crate::catalog::{Catalog, CatalogError};
use crate::store::Store;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open store.
pub struct Engine {
    pub(super) store: Store,
    pub(super) settings: Settings,
    /// Kept open by a daemon; a command opens it for each transaction.
    index: Option<Catalog>,
}

/// The stores of this machine.
pub struct Stores;

impl Backend for Stores {
    fn find_run_dir(&self, root: &Path) -> Result<Option<PathBuf>, ServiceError> {
        match root.join("VERSION").exists() {
            true => Ok(Some(Store::open(root)?.run_dir())),
            false => Ok(None),
        }
    }

    fn make_run_dir(&self, root: &Path) -> Result<PathBuf, ServiceError> {
        Ok(Store::open(root)?.run_dir())
    }

    fn open(&self, settings: &Settings, role: Role) -> Result<Arc<dyn Handler>, ServiceError> {
        Ok(Arc::new(Engine::open(settings, role)?))
    }
}

impl Engine {
    /// Opens the store, and takes away what dead processes left in it and in the kernel.
    pub fn open(settings: &Settings, role: Role) -> Result<Engine, ServiceError> {
        let store = Store::open(&settings.root)?;
        super::draft::sweep(&store)?;
        attach::sweep(&store)?;
        let index = match role {
            Role::Daemon => Some(Catalog::open(&store)?),
            Role::Command => None,
        };
        Ok(Engine {
            store,
            settings: settings.clone(),
            index,
        })
    }

    /// Tells the catalogue. That it cannot be told is no error of the verb: the store is marked, and the next opener indexes again.
    pub(super) fn index(&self, work: impl FnOnce(&Catalog) -> Result<(), CatalogError>) -> Result<(), ServiceError> {
        let told = match &self.index {
            None => Catalog::with(&self.store, work),
            Some(catalog) => self.refreshed(catalog).and_then(work).and_then(|()| catalog.flush()),
        };
        if let Err(error) = told {
            tracing::warn!(cause = %error, "the catalogue will be made again");
            self.store.mark_index_stale()?;
        }
        Ok(())
    }

    /// Asks the catalogue.
    pub(super) fn look_up<T>(&self, work: impl FnOnce(&Catalog) -> Result<T, CatalogError>) -> Result<T, ServiceError> {
        match &self.index {
            None => Ok(Catalog::with(&self.store, work)?),
            Some(catalog) => Ok(self.refreshed(catalog).and_then(work)?),
        }
    }

    /// A command that could not reach the catalogue, as we have it open, has left a marker.
    fn refreshed<'a>(&self, catalog: &'a Catalog) -> Result<&'a Catalog, CatalogError> {
        if self.store.index_marker().exists() {
            catalog.rebuild(&self.store)?;
        }
        Ok(catalog)
    }
}

impl Handler for Engine {
    fn handle(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError> {
        Ok(match request {
            Request::Create(ask) => Reply::Create(self.create(ask, progress)?),
            Request::Import(ask) => Reply::Import(self.import(ask, progress)?),
            Request::Clone(ask) => Reply::Clone(self.clone_image(ask)?),
            Request::Mount(ask) => Reply::Mount(self.mount(ask)?),
            Request::Umount(ask) => Reply::Umount(self.umount(ask)?),
            Request::Attach(ask) => Reply::Attach(self.attach(ask)?),
            Request::Detach(ask) => Reply::Detach(self.detach(ask)?),
            Request::Commit(ask) => Reply::Commit(self.commit(ask, progress)?),
            Request::Diff(ask) => Reply::Diff(self.diff(ask)?),
            Request::Export(ask) => Reply::Export(self.export(ask, progress)?),
            Request::Info(ask) => Reply::Info(self.info(ask)?),
            Request::List(_) => Reply::List(self.list()?),
            Request::Tree(_) => Reply::Tree(self.tree()?),
            Request::Check(ask) => Reply::Check(self.check(ask, progress)?),
            Request::Rename(ask) => Reply::Rename(self.rename(ask)?),
            Request::Rm(ask) => Reply::Rm(self.rm(ask)?),
            Request::Gc(ask) => Reply::Gc(self.gc(ask)?),
            Request::Publish(ask) => Reply::Publish(self.publish(ask, progress)?),
            Request::Pull(ask) => Reply::Pull(self.pull(ask, progress)?),
            Request::Peers(_) => Reply::Peers(self.peers()?),
        })
    }
}

/// The hidden subcommand of `blockbtd` that serves one attached image.
pub fn fuse_serve(arguments: Vec<OsString>) -> Result<(), ServiceError> {
    let [place] = &arguments[..] else {
        return Err(ServiceError::new(ErrorKind::Usage, "fuse-serve is started by attach, with one argument"));
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    attach::server::run(Path::new(place)).map_err(|error| ServiceError::from_error(ErrorKind::Failed, &error))
}
