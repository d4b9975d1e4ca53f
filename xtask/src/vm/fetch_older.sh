# Unpacks Debian's kernel for clouds of the release before this machine's into a folder, with the headers that modules are
# built against: FOLDER RELEASE BEFORE. Prints its version. Where this machine gets its packages from, apt tells.
set -eu
folder=$1 now=$2 before=$3
mkdir -p "$folder/apt/lists" "$folder/apt/cache/archives/partial"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keys ] && signed="[signed-by=$keys]" || signed=
apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Origin: Debian' | sort -u |
    sed -n "s#^\(.*\) $now\(-security\)\?\$#deb $signed \1 $before\2 main#p" | sed 's/  */ /g' > "$folder/apt/sources.list"
[ -s "$folder/apt/sources.list" ] || { echo "apt has no sources of Debian's $now" >&2; exit 1; }
options="-o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=/dev/null"
options="$options -o Dir::State::lists=$folder/apt/lists -o Dir::Cache=$folder/apt/cache"
apt-get $options --quiet update >&2
version=$(apt-cache $options search --names-only '^linux-image-[0-9.]*-[0-9]*-cloud-amd64$' | cut -d ' ' -f 1 |
    sed 's/^linux-image-//' | sort -V | tail -n 1)
[ -n "$version" ] || { echo "$before has no kernel for clouds" >&2; exit 1; }
common=$(apt-cache $options depends "linux-headers-$version" | sed -n 's/.*Depends: \(linux-headers-.*-common\)$/\1/p')
kbuild=$(apt-cache $options depends "linux-headers-$version" | sed -n 's/.*Depends: \(linux-kbuild-.*\)$/\1/p')
cd "$folder"
apt-get $options --quiet download "linux-image-$version" "linux-headers-$version" "$common" "$kbuild" >&2
for package in *.deb; do dpkg-deb -x "$package" .; done
rm -rf ./*.deb apt
# The headers name each other where they would be installed.
sed -i "s#/usr/src/#$folder/usr/src/#" "usr/src/linux-headers-$version/Makefile"
echo "$version"
