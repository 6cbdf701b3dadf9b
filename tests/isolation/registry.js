'use strict';
// An npm registry with one package, whose install script is hostile. `facts.json` in the given directory says what it attacks.
// Its description waits for as long as there is a `hold`.
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const zlib = require('node:zlib');
process.stdin.resume().on('end', () => process.exit()); // With the test, however that ends.
const [directory] = process.argv.slice(2);

/** @param {Record<string, string>} files */
function archive(files) {
  const blocks = Object.entries(files).flatMap(([name, content]) => {
    const body = Buffer.from(content);
    const header = Buffer.alloc(512);
    header.write(`package/${name}`, 0);
    header.write('0000644\0', 100);
    header.write(body.length.toString(8).padStart(11, '0'), 124);
    header.write('00000000000', 136);
    header.write('        ', 148);
    header.write('0', 156);
    header.write('ustar\0' + '00', 257);
    const sum = header.reduce((sum, byte) => sum + byte, 0);
    header.write(sum.toString(8).padStart(6, '0') + '\0 ', 148);
    return [header, body, Buffer.alloc((512 - (body.length % 512)) % 512)];
  });
  return zlib.gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]));
}

const package_json = { name: 'hostile', version: '1.0.0', scripts: { postinstall: 'node attack.js' } };
let tarball;
const server = http.createServer((request, response) => {
  fs.appendFileSync(path.join(directory, 'asked'), `${request.method} ${request.url} ${request.headers.authorization}\n`);
  if (request.url.endsWith('.tgz')) return response.end(tarball);
  if (request.url !== '/hostile') return response.writeHead(404).end('{}');
  describe(response);
});
const describe = (response) => {
  if (fs.existsSync(path.join(directory, 'hold'))) return setTimeout(describe, 10, response);
  const facts = fs.readFileSync(path.join(directory, 'facts.json'), 'utf8');
  const attack = fs.readFileSync(path.join(__dirname, 'attacks/install.js'), 'utf8').replace('FACTS', facts);
  tarball = archive({ 'package.json': JSON.stringify(package_json), 'attack.js': attack, 'index.js': 'module.exports = "installed";' });
  const integrity = `sha512-${crypto.createHash('sha512').update(tarball).digest('base64')}`;
  const dist = { tarball: `http://127.0.0.1:${server.address().port}/hostile/-/hostile-1.0.0.tgz`, integrity };
  const versions = { '1.0.0': { ...package_json, hasInstallScript: true, dist } };
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ name: 'hostile', 'dist-tags': { latest: '1.0.0' }, versions }));
};
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
