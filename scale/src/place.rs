//! Where the files lie: a folder, or a store that speaks S3.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

/// A place for files.
#[derive(Debug)]
pub struct Place {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The address of the place; it ends with a slash.
    pub url: Url,
    /// The place within the store.
    prefix: Path,
    folder: Option<std::path::PathBuf>,
}

impl Place {
    /// A folder, which is made if it is not there, or `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// When it is neither, or cannot be used.
    pub fn open(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let url = Url::parse(&format!("s3://{}/", rest.trim_end_matches('/')))
                .with_context(|| format!("`{text}` is no address; expected s3://BUCKET/PREFIX"))?;
            let store = AmazonS3Builder::from_env().with_url(url.as_str()).build().with_context(|| {
                format!("{text}: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT for a server that is not Amazon's")
            })?;
            let prefix = Path::from_url_path(url.path()).with_context(|| format!("{text}: its prefix"))?;
            return Ok(Self { store: Arc::new(store), url, prefix, folder: None });
        }
        if text.contains("://") {
            bail!("`{text}`: expected a folder or s3://BUCKET/PREFIX");
        }
        std::fs::create_dir_all(text).with_context(|| format!("make the folder {text}"))?;
        let folder = std::fs::canonicalize(text).with_context(|| format!("find the folder {text}"))?;
        let Ok(url) = Url::from_directory_path(&folder) else { bail!("{}: no path for an address", folder.display()) };
        let prefix = Path::from_absolute_path(&folder).with_context(|| format!("the folder {text}"))?;
        Ok(Self { store: Arc::new(LocalFileSystem::new()), url, prefix, folder: Some(folder) })
    }

    /// A file of the place, by its path below it.
    pub fn path(&self, below: &str) -> Path {
        below.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Whether a file is there.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn has(&self, path: &Path) -> Result<bool> {
        match self.store.head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("look for {path}")),
        }
    }

    /// A whole file; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.store.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.with_context(|| format!("read {path}"))?.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {path}")),
        }
    }

    /// Writes a whole file or nothing: a folder's by renaming, a store's by one request or by completing its parts.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        self.store.put(path, bytes.into()).await.map(|_| ()).with_context(|| format!("write {path}"))
    }

    /// Lets what was written reach the disk, where that is not the store's own business.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let open = std::fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
        rustix::fs::syncfs(&open).with_context(|| format!("write {} to its disk", folder.display()))
    }
}
