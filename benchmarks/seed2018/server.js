'use strict';
// The program of 2018, written anew from its description: a push is an LPUSH, a pop a BRPOP with a time-out, each on
// a connection of its own out of a pool. It logs nothing, which the daemon it is compared with does.

const express = require('express');
const redis = require('redis');

const POOL_MAX = Number(process.env.POOL_MAX || 50);
const QUEUE_TIMEOUT = Number(process.env.QUEUE_TIMEOUT || 10);

const idle = [];
const waiting = [];
let made = 0;

function acquire() {
  if (idle.length > 0) return Promise.resolve(idle.pop());
  if (made < POOL_MAX) {
    made += 1;
    return Promise.resolve(redis.createClient({ path: process.env.REDIS_PATH }));
  }
  return new Promise((resolve) => waiting.push(resolve));
}

function release(client) {
  if (waiting.length > 0) waiting.shift()(client);
  else idle.push(client);
}

async function command(name, ...args) {
  const client = await acquire();
  try {
    return await new Promise((resolve, reject) => {
      client[name](...args, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  } finally {
    release(client);
  }
}

const app = express();
app.use(express.json({ strict: false }));

app.put('/api/pushTask/:workerName', async (req, res) => {
  try {
    await command('lpush', req.params.workerName, JSON.stringify(req.body));
    res.json({ success: true });
  } catch (error) {
    res.status(500).json({ error: error.message });
  }
});

app.get('/api/popTask/:workerName', async (req, res) => {
  try {
    const reply = await command('brpop', req.params.workerName, QUEUE_TIMEOUT);
    if (!reply) return res.status(202).json({ error: 'No tasks available' });
    return res.json({ task: JSON.parse(reply[1]) });
  } catch (error) {
    return res.status(500).json({ error: error.message });
  }
});

app.listen(Number(process.env.PORT || 3000), '127.0.0.1');
