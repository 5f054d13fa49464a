# Loads a Vagrantfile with stand-ins that record every call, and prints the machines as JSON.
require "json"

class Recorder
  attr_reader :values, :calls, :machines

  def initialize
    @values = {}
    @calls = []
    @machines = {}
  end

  def vm
    self
  end

  def define(name)
    machine = Recorder.new
    yield machine
    @machines[name] = machine
  end

  def provider(name)
    machine = Recorder.new
    yield machine
    @calls << ["provider", [name], machine.values]
  end

  def method_missing(name, *arguments, **options)
    if name.to_s.end_with?("=")
      @values[name.to_s.chomp("=")] = arguments.first
    else
      @calls << [name.to_s, arguments, options]
    end
  end

  def respond_to_missing?(*)
    true
  end

  def to_h
    { values: @values, calls: @calls, machines: @machines.transform_values(&:to_h) }
  end
end

module Vagrant
  def self.configure(version)
    recorder = Recorder.new
    yield recorder
    puts JSON.generate({ version: version, config: recorder.to_h })
  end
end

load ARGV.fetch(0)
