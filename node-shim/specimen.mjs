// A module of the kind that most tenants write, which imports one of the other kind: what a worker loads while it waits in reserve.
import './exit-codes.js';
